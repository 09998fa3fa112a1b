"""The GPU tier: `front` (queue, text, frames), `engine` (scheduling and execution), `model` (architectures, loaders)."""
