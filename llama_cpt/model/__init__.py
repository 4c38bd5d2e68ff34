"""The Llama 3 model: layers, attention, adapters and quantized products."""
