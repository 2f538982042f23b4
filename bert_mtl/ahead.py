"""Work done ahead of its use, by a thread: batches are made while the device works on those before."""

from collections.abc import Callable, Generator, Iterable
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, TypeVar

T = TypeVar("T")
POLL = 0.1  # seconds after which a waiting thread looks whether it is still wanted
END = object()


def ahead(make: Callable[[], Iterable[T]], count: int = 4) -> Generator[T, None, None]:
    """What `make()` yields, up to `count` items before they are asked for. Closing it (or an error in the loop over it,
    with `contextlib.closing`) ends the thread; an error in `make` is raised where the item was asked for.
    """
    items: Queue[Any] = Queue(count)
    closed = Event()

    def put(item: Any) -> bool:
        while not closed.is_set():
            try:
                items.put(item, timeout=POLL)
                return True
            except Full:
                continue
        return False

    def work() -> None:
        try:
            for item in make():
                if not put((item, None)):
                    return
            put((END, None))
        except BaseException as error:  # whatever it is, it belongs to who asked
            put((END, error))

    # A daemon, because an interpreter that ends with an error must not wait for batches.
    thread = Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = items.get()
            if error is not None:
                raise error
            if item is END:
                return
            yield item
    finally:
        closed.set()
        while thread.is_alive():
            try:
                items.get_nowait()
            except Empty:
                pass
            thread.join(POLL)
