"""Copies between main memory and a device that keep neither of them waiting.

On a GPU they go through pinned memory, each way on a stream of its own, beside what the GPU computes; elsewhere they
are plain. https://docs.pytorch.org/tutorials/intermediate/pinmem_nonblock.html
"""

import torch


class Transfer:
    """To and from `device`; behind: how many batches a loop should let wait before it reads what came down."""

    def __init__(self, device):
        self.device = torch.device(device)
        self._streams = [torch.cuda.Stream(self.device) for _ in range(2)] if self.device.type == 'cuda' else None
        self.behind = 0 if self._streams is None else 1

    def up(self, array):
        """A NumPy array as a tensor on the device; there it is complete for whatever is computed with it later."""
        tensor = torch.from_numpy(array)
        if self._streams is None:
            return tensor.to(self.device)
        stream, computing = self._streams[0], torch.cuda.current_stream(self.device)
        with torch.cuda.stream(stream):
            moved = tensor.pin_memory().to(self.device, non_blocking=True)
        computing.wait_stream(stream)
        moved.record_stream(computing)       # its memory is not given away before that is done with it
        return moved

    def down(self, tensor):
        """Sends a tensor of the device on its way; returns a function that waits for it and gives a NumPy array."""
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
