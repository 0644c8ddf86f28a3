"""The event log's topics: who writes and reads each stands in docs/architecture.md."""

PAIR_TOPIC = "hustings.pairs"
VOTE_TOPIC = "hustings.votes"
THUMB_TOPIC = "hustings.thumbs"
DEAD_LETTER_TOPIC = "hustings.votes.dlq"
RECEIPT_TOPIC = "hustings.receipts"
ADAPTER_TOPIC = "hustings.adapters"
RELEASE_TOPIC = "hustings.releases"
FORGOTTEN_TOPIC = "hustings.forgotten"
TOPICS = (
    PAIR_TOPIC,
    VOTE_TOPIC,
    THUMB_TOPIC,
    DEAD_LETTER_TOPIC,
    RECEIPT_TOPIC,
    ADAPTER_TOPIC,
    RELEASE_TOPIC,
    FORGOTTEN_TOPIC,
)
