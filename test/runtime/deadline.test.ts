import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { describe, expect, it } from "vitest";
import { abortable, deadline } from "../../src/base/clock.js";

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;
const pause = (ms: number) =>
  new Promise((resolve) => {
    setTimeout(resolve, ms);
  });

describe("deadline", () => {
  it("a deadline aborts on time, and not before, even when garbage is collected during the wait", async () => {
    // On Node 20, AbortSignal.any([outer, AbortSignal.timeout(ms)]) would never abort here.
    const outer = new AbortController();
    const begun = performance.now();
    const { signal } = deadline(300, outer.signal);
    let abortedAfterMs: number | undefined;
    signal.addEventListener("abort", () => {
      abortedAfterMs = performance.now() - begun;
    });
    for (let round = 0; round < 5; round++) {
      collect();
      await pause(10);
    }
    await expect.poll(() => abortedAfterMs).toBeGreaterThan(290);
    expect(signal.reason).toMatchObject({ message: "no answer within 300 ms" });
  });

  it("a deadline aborts with the outer signal and its reason, even if that signal had already aborted", () => {
    const reason = new Error("outer");
    const outer = new AbortController();
    using limit = deadline(undefined, outer.signal);
    expect(limit.signal.aborted).toBe(false);
    outer.abort(reason);
    expect(limit.signal.reason).toBe(reason);
    using late = deadline(1_000, outer.signal);
    expect(late.signal.reason).toBe(reason);
  });

  it("many deadlines on one signal cause no warning about too many listeners", async () => {
    const warnings: Error[] = [];
    const note = (warning: Error) => void warnings.push(warning);
    process.on("warning", note);
    const outer = new AbortController();
    const limits = Array.from({ length: 20 }, () => deadline(1_000, outer.signal));
    const waits = Array.from({ length: 20 }, () => abortable(pause(10), outer.signal));
    await Promise.all(waits);
    process.off("warning", note);
    for (const limit of limits) limit[Symbol.dispose]();
    expect(warnings).toEqual([]);
  });

  it("a deadline never aborts after it is disposed of", async () => {
    const outer = new AbortController();
    const limit = deadline(20, outer.signal);
    limit[Symbol.dispose]();
    outer.abort();
    await pause(40);
    expect(limit.signal.aborted).toBe(false);
  });
});

describe("abortable", () => {
  it("abortable settles like its work, or rejects with the signal's reason if the signal aborts first", async () => {
    const controller = new AbortController();
    await expect(abortable(Promise.resolve(1), controller.signal)).resolves.toBe(1);
    await expect(abortable(Promise.reject(new Error("work")), controller.signal)).rejects.toThrow("work");
    const waiting = abortable(pause(10_000), controller.signal);
    controller.abort(new Error("enough"));
    await expect(waiting).rejects.toThrow("enough");
    await expect(abortable(pause(10_000), controller.signal)).rejects.toThrow("enough");
  });
});
