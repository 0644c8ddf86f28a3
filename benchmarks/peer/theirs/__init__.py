"""What runs inside the peer's environment: scripts, started by path, that can import nothing of ours but `usage`."""
