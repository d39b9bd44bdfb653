"""asyncio's event loops, made to finish what still runs before they close."""

import asyncio


def finish_before_closing() -> None:
    """Makes every new event loop of this process wait for its tasks before it closes.

    Orbax closes its event loop at the first failed write. The other writes, still under way, would then print dozens of
    lines of tracebacks.
    """
    asyncio.set_event_loop_policy(_PatientPolicy())


class _PatientEventLoop(asyncio.SelectorEventLoop):
    def close(self) -> None:
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


class _PatientPolicy(asyncio.DefaultEventLoopPolicy):
    _loop_factory = _PatientEventLoop
