"""The worker's asyncio side: consumes jobs, text to tokens and back, frames and results out."""
