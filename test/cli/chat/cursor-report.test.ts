import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { CursorReport } from "../../../src/cli/chat/terminal/cursor-report.js";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

describe("the terminal's report of the cursor after a resize", () => {
  it("after a report that came too late, the chat waits longer for the terminal's next report", async () => {
    using report = new CursorReport();
    const first = report.next();
    vi.advanceTimersByTime(1_000);
    expect(await first).toBeUndefined();
    report.arrived(7); // too late
    const second = report.next();
    vi.advanceTimersByTime(4_000);
    report.arrived(12);
    expect(await second).toBe(12);
    expect(report.isAwaited).toBe(false);
  });

  it("a report after two resizes ends only the wait that began with the second resize", async () => {
    using report = new CursorReport();
    let ended = 0;
    void report.next().then(() => ended++);
    const second = report.next();
    report.arrived(3);
    expect(await second).toBe(3);
    expect(ended).toBe(0);
  });
});
