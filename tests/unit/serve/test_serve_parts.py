"""Cache, limits, ranges: the small parts by themselves."""

from __future__ import annotations

import random
import threading
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coembed.errors import ServiceError, UserError
from coembed.serve import server
from coembed.serve.cache import Cache
from coembed.serve.limits import Bucket
from coembed.serve.media import Span, read_range


def test_a_cache_forgets_what_was_used_least_lately() -> None:
    cache: Cache[int] = Cache(max_entries=2, max_bytes=10_000)
    cache.put("a", 1, num_bytes=1)
    cache.put("b", 2, num_bytes=1)
    assert cache.get("a") == 1
    cache.put("c", 3, num_bytes=1)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_a_cache_keeps_both_its_bounds(seed: int) -> None:
    rng = random.Random(seed)
    cache: Cache[int] = Cache(max_entries=7, max_bytes=5000)
    model: OrderedDict[int, tuple[int, int]] = OrderedDict()
    for _ in range(200):
        key, size = rng.randrange(12), rng.randrange(3000)
        cache.put(key, size, num_bytes=size)
        model.pop(key, None)
        model[key] = (size, size + 300)
        while len(model) > 7 or sum(cost for _, cost in model.values()) > 5000:
            model.popitem(last=False)
        assert len(cache) == len(model) <= 7
        assert cache.num_bytes == sum(cost for _, cost in model.values()) <= 5000
    for key in range(12):
        assert cache.get(key) == (model[key][0] if key in model else None)


def test_what_is_larger_than_a_cache_is_not_kept() -> None:
    cache: Cache[int] = Cache(max_entries=7, max_bytes=1000)
    cache.put("small", 1, num_bytes=1)
    cache.put("large", 2, num_bytes=1001)
    assert (cache.get("small"), cache.get("large")) == (1, None)


def test_a_cache_under_many_threads_stays_in_its_bounds() -> None:
    cache: Cache[int] = Cache(max_entries=50, max_bytes=10**6)

    def hammer(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(2000):
            key = rng.randrange(100)
            cache.put(key, key, num_bytes=10)
            assert cache.get(rng.randrange(100)) in (None, *range(100))

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache) == 50 and cache.num_bytes == 50 * 310


def test_a_bucket_lets_a_burst_through_and_then_the_rate() -> None:
    bucket = Bucket(rate_per_s=10, burst=5)
    assert [bucket.take("ada", 1, now=100.0) for _ in range(5)] == [0.0] * 5
    assert bucket.take("ada", 1, now=100.0) == pytest.approx(0.1)
    assert bucket.take("grace", 1, now=100.0) == 0.0  # everyone has their own
    assert bucket.take("ada", 1, now=100.11) == 0.0
    assert bucket.take("ada", 1, now=100.11) > 0
    assert [bucket.take("ada", 1, now=200.0) for _ in range(6)][-1] > 0  # no more than a burst


def test_buckets_of_many_clients_do_not_fill_the_memory() -> None:
    bucket = Bucket(rate_per_s=10, burst=5)
    for number in range(25_000):
        bucket.take(str(number), 1, now=1.0)
    assert len(bucket._clients) == 10_000


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, "whole"), ("", "whole"), ("bytes=0-9", Span(0, 9)), ("bytes=90-", Span(90, 99)),
        ("bytes=-10", Span(90, 99)), ("bytes=50-500", Span(50, 99)), ("bytes=-500", Span(0, 99)),
        ("bytes=100-", "impossible"), ("bytes=-0", "impossible"), ("bytes=9-1", "whole"),
        ("bytes=0-1,5-6", "whole"), ("items=0-1", "whole"), ("bytes=a-b", "whole"),
        ("bytes=-", "whole"), ("bytes=٣-٤", "whole"), ("bytes=" + "9" * 5000 + "-", "impossible"),
        ("BYTES = 0-0", Span(0, 0)),
    ],
)  # fmt: skip
def test_ranges_are_read_as_rfc_9110_has_them(header: str | None, expected: Any) -> None:
    assert read_range(header, 100) == expected


@given(st.text(max_size=30), st.integers(0, 1000))
def test_any_range_header_is_a_span_inside_or_none(text: str, size: int) -> None:
    span = read_range("bytes=" + text, size)
    if isinstance(span, Span):
        assert 0 <= span.first <= span.last < size


def test_beyond_loopback_there_has_to_be_a_key() -> None:
    check = server._check_options
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.53"):
        check(server.Options(host=host))
    for host in ("0.0.0.0", "::", "192.168.0.7", "shop.example"):
        with pytest.raises(UserError, match=r"there is no key(.|\n)*COEMBED_API_KEY"):
            check(server.Options(host=host))
        check(server.Options(host=host, api_key="k" * 16))
        check(server.Options(host=host, insecure=True))
    with pytest.raises(UserError, match="could be guessed"):
        check(server.Options(api_key="short"))
    with pytest.raises(UserError, match="--processes 0"):
        check(server.Options(processes=0))
    with pytest.raises(UserError, match="--port 70000"):
        check(server.Options(port=70_000))


def test_a_taken_port_is_one_clear_error() -> None:
    with (
        server._bind("127.0.0.1", 0) as taken,
        pytest.raises(ServiceError, match="cannot be listened on: Address already in use"),
    ):
        server._bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ServiceError, match="cannot be listened on"):
        server._bind("no.such.host.invalid", 0)
