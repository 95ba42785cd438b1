"""Makes 3D, retrieval and generative models small and fast."""

__version__ = "0.1.0"
