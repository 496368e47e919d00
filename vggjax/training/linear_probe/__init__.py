"""The head solved at once on cached features, in place of training it by steps."""
