import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import { setEvictionMarker, setUseMarker, usedSessions } from "../../src/servers/use-markers.js";
import { serverRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

async function server() {
  const home = join(await temporaryRoot(), "servers", "s1", "home");
  mkdirSync(home, { recursive: true });
  return serverRecord("s1", { home });
}

function filesIn({ home }: { home: string }): string[] {
  const folder = join(dirname(home), "uses");
  return existsSync(folder) ? readdirSync(folder) : [];
}

function markers(on: { home: string }): string[] {
  return filesIn(on).filter((name) => !name.startsWith("~source~"));
}

describe("use markers", () => {
  it("setUseMarker waits while its own session is being evicted, but not while another session is", async () => {
    const on = await server();
    using other = setEvictionMarker(on, "other");
    const evicted = setEvictionMarker(on, "held");
    expect([other, evicted]).not.toContain(null);
    const waiting = setUseMarker(on, "held", { waitMs: 60_000, signal: undefined });
    const first = await Promise.race([waiting.then(() => "set"), new Promise((resolve) => setTimeout(resolve, 50))]);
    expect(first).toBeUndefined();
    evicted?.[Symbol.dispose]();
    using marker = await waiting;
    expect(marker?.isShared()).toBe(false);
    expect(setEvictionMarker(on, "held")).toBeNull();
  });

  it("setUseMarker stops waiting for an eviction after waitMs, and leaves no marker", async () => {
    const on = await server();
    using _evicted = setEvictionMarker(on, "held");
    const before = markers(on);
    expect(await setUseMarker(on, "held", { waitMs: 30, signal: undefined })).toBeNull();
    expect(markers(on)).toEqual(before);
  });

  it("setUseMarker rejects with the signal's reason when the signal aborts, and leaves no marker", async () => {
    const on = await server();
    using _evicted = setEvictionMarker(on, "held");
    const before = markers(on);
    const reason = new Error("hung up");
    const giveUp = new AbortController();
    const waiting = setUseMarker(on, "held", { waitMs: 60_000, signal: giveUp.signal });
    giveUp.abort(reason);
    await expect(waiting).rejects.toBe(reason);
    expect(markers(on)).toEqual(before);
  });

  it("usedSessions removes the files that dead processes left in the folder", async () => {
    const on = await server();
    using _use = await setUseMarker(on, "held", { waitMs: 0, signal: undefined });
    const folder = join(dirname(on.home), "uses");
    for (const left of ["~source~0~0~0~0", "other~use~0~0~0~0"]) writeFileSync(join(folder, left), "");
    expect([...usedSessions(on)]).toEqual(["held"]);
    expect(filesIn(on)).toHaveLength(1);
  });

  it("setEvictionMarker throws and leaves no marker when it cannot check for use markers", async () => {
    const on = await server();
    using _use = await setUseMarker(on, "other", { waitMs: 0, signal: undefined });
    // This marker belongs to a dead process and cannot be deleted.
    mkdirSync(join(dirname(on.home), "uses", "held~use~0~0~0~0"));
    const before = markers(on);
    expect(() => setEvictionMarker(on, "held")).toThrow();
    expect(markers(on)).toEqual(before);
  });
});
