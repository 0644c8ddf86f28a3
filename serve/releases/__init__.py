"""How an adapter comes into office: heard of, verified, loaded beside the incumbent, probed, switched to."""
