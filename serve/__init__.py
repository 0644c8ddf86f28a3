"""The chat API: contenders, pairs, votes, engines, releases and the web pages."""
