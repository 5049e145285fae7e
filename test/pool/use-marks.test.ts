import { existsSync, mkdirSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import { markEviction, markUse } from "../../src/pool/use-marks.js";
import { serverRecord } from "../fixtures/store-records.js";
import { temporaryRoot } from "../fixtures/store-root.js";

async function server() {
  const home = join(await temporaryRoot(), "servers", "s1", "home");
  mkdirSync(home, { recursive: true });
  return serverRecord("s1", { home });
}

function marks({ home }: { home: string }): string[] {
  const folder = join(dirname(home), "uses");
  return existsSync(folder) ? readdirSync(folder) : [];
}

describe("use markers", () => {
  it("a use marker waits for the end of an eviction of its own session only", async () => {
    const on = await server();
    using other = markEviction(on, "other");
    const evicted = markEviction(on, "held");
    expect([other, evicted]).not.toContain(null);
    const waiting = markUse(on, "held", { waitMs: 10_000, signal: undefined });
    const first = await Promise.race([waiting.then(() => "marked"), new Promise((resolve) => setTimeout(resolve, 50))]);
    expect(first).toBeUndefined();
    evicted?.[Symbol.dispose]();
    using mark = await waiting;
    expect(mark?.isShared()).toBe(false);
    expect(markEviction(on, "held")).toBeNull();
  });

  it("waiting for a use marker ends at its limit and leaves no marker", async () => {
    const on = await server();
    using _evicted = markEviction(on, "held");
    const before = marks(on);
    expect(await markUse(on, "held", { waitMs: 30, signal: undefined })).toBeNull();
    expect(marks(on)).toEqual(before);
  });

  it("waiting for a use marker ends with the caller's reason when its signal aborts, and leaves no marker", async () => {
    const on = await server();
    using _evicted = markEviction(on, "held");
    const before = marks(on);
    const reason = new Error("hung up");
    const giveUp = new AbortController();
    const waiting = markUse(on, "held", { waitMs: 10_000, signal: giveUp.signal });
    giveUp.abort(reason);
    await expect(waiting).rejects.toBe(reason);
    expect(marks(on)).toEqual(before);
  });

  it("an eviction that cannot check for uses fails and leaves no eviction marker", async () => {
    const on = await server();
    using _use = await markUse(on, "other", { waitMs: 0, signal: undefined });
    // This marker belongs to a dead process and cannot be deleted.
    mkdirSync(join(dirname(on.home), "uses", "held~use~0~0~0~0"));
    const before = marks(on);
    expect(() => markEviction(on, "held")).toThrow();
    expect(marks(on)).toEqual(before);
  });
});
