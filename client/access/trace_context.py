"""`trace_context` names the span in which the caller's own program makes a call.

So the server's spans are part of the caller's trace. It takes OpenTelemetry only from a program
that has imported it, and imports nothing itself.
"""

from __future__ import annotations

import sys


def trace_context() -> tuple[tuple[str, str], ...]:
    """Returns the headers of W3C Trace Context for a new call; none without an active span."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or not hasattr(trace, "get_current_span"):  # it is still being imported
        return ()
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ()
    flags = int(context.trace_flags)
    entries = [("traceparent", f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}")]
    state = context.trace_state.to_header()
    if state:
        entries.append(("tracestate", state))
    return tuple(entries)
