"""Preparation of corpora: documents and chats to token rows."""
