"""One of the processes that `egogrpo doctor --gpu` starts: they add up a tensor, and each sends one to the next."""

from __future__ import annotations

import torch
import torch.distributed as dist

from grpo.learner.launching import make_accelerator, quiet_libraries


def main() -> None:
    quiet_libraries()
    accelerator = make_accelerator()
    rank, count = accelerator.process_index, accelerator.num_processes
    summed = torch.full((1024,), float(rank), device=accelerator.device)
    dist.all_reduce(summed)
    if float(summed[0]) != count * (count - 1) / 2:
        raise RuntimeError(f"process {rank} of {count} has a wrong sum: {float(summed[0])}")
    if count > 1:
        # As segments travel in load balancing.
        received: list[int | None] = [None]
        options = {"device": accelerator.device, "use_batch": True}
        if rank == 0:
            dist.send_object_list([rank], dst=1, **options)
        elif rank == 1:
            dist.recv_object_list(received, src=0, **options)
            if received != [0]:
                raise RuntimeError(f"process 1 received {received}")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        print(f"{count} over {dist.get_backend()} have the same sum", flush=True)
    accelerator.end_training()


if __name__ == "__main__":
    main()
