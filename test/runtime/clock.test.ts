import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { systemClock } from "../../src/base/clock.js";

describe("the system's clock", () => {
  it("the system's clock rejects a wait with the signal's reason if the signal aborts before or during the wait", async () => {
    const reason = new Error("enough");
    const stop = new AbortController();
    const waiting = systemClock.wait(600_000, { signal: stop.signal });
    stop.abort(reason);
    await expect(waiting).rejects.toBe(reason);
    await expect(systemClock.wait(600_000, { signal: stop.signal, ref: false })).rejects.toBe(reason);
  });

  it("the system's clock calls an action once its time has come, unless the action was cancelled", async () => {
    const called: string[] = [];
    const cancel = systemClock.after(1, () => called.push("cancelled"));
    cancel();
    await new Promise<void>((resolve) => {
      systemClock.after(2, () => {
        called.push("due");
        resolve();
      });
      // Keep the process alive, because the action's own timer does not.
      void delay(100);
    });
    expect(called).toEqual(["due"]);
  });
});
