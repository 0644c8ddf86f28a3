"""`hustings`, which `python -m deploy` is too."""


def main() -> None:
    """Entry point: Ctrl-C while the command is still being loaded ends it as quietly as later."""
    try:
        from deploy.cli import main as run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
