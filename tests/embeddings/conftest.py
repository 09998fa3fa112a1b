from tests.front.conftest import bench

__all__ = ["bench"]
