"""Model weights in Hugging Face folders and run folders: reading, export and verification."""
