"""Asynchronous copies between main memory and a device.

With a GPU they use pinned memory and one stream per direction, parallel to computation; otherwise plain copies.
https://docs.pytorch.org/tutorials/intermediate/pinmem_nonblock.html
"""

import torch


class Transfer:
    """Copies to and from `device`; behind: number of batches to run ahead before reading a copy from the device."""

    def __init__(self, device):
        self.device = torch.device(device)
        self._streams = [torch.cuda.Stream(self.device) for _ in range(2)] if self.device.type == 'cuda' else None
        self.behind = 0 if self._streams is None else 1

    def up(self, array):
        """Copy a NumPy array to the device; later computations there wait for it."""
        tensor = torch.from_numpy(array)
        if self._streams is None:
            return tensor.to(self.device)
        stream, computing = self._streams[0], torch.cuda.current_stream(self.device)
        with torch.cuda.stream(stream):
            moved = tensor.pin_memory().to(self.device, non_blocking=True)
        computing.wait_stream(stream)
        moved.record_stream(computing)       # keeps its memory until that stream has used it
        return moved

    def down(self, tensor):
        """Start copying a tensor from the device; returns a function that waits and returns a NumPy array."""
        if self._streams is None:
            return lambda: tensor.cpu().numpy()
        stream, computing = self._streams[1], torch.cuda.current_stream(self.device)
        stream.wait_stream(computing)
        with torch.cuda.stream(stream):
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            tensor.record_stream(stream)
            arrived = stream.record_event()

        def array():
            arrived.synchronize()
            return host.numpy()
        return array
