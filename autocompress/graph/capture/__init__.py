"""From any module of PyTorch to an exported program of operations that the engine treats as one unit."""
