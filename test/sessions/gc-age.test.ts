import { mkdirSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import { identify, ownIdentity } from "../../src/runtime/process-table.js";
import { isAbandoned, isInUse, lastUseOf, measureFolder, ONE_HOST, ttlOf } from "../../src/sessions/gc-age.js";
import { makeOld } from "../fixtures/gc-sessions.js";
import { sessionRecord } from "../fixtures/store-records.js";
import { temporaryRoot } from "../fixtures/store-root.js";

const HOUR_MS = 3_600_000;
const NOW = Date.now();

/** A session's folder whose files were all written so many hours ago. */
async function sessionFolder(hours: number, files: readonly string[]): Promise<string> {
  const folder = await temporaryRoot();
  mkdirSync(folder);
  for (const file of files) {
    mkdirSync(dirname(join(folder, file)), { recursive: true });
    writeFileSync(join(folder, file), "0123456789");
  }
  makeOld(folder, hours * HOUR_MS);
  return folder;
}

function touch(path: string, hours: number): void {
  const then = new Date(NOW - hours * HOUR_MS);
  utimesSync(path, then, then);
}

describe("the age of a session's folder", () => {
  const files = ["workspace.yaml", "events.jsonl", "checkpoints/index.md", "files/deep/er/note.txt"];

  it("is that of the newest file in it, with the bytes of all of them", async () => {
    const folder = await sessionFolder(48, files);
    touch(join(folder, "events.jsonl"), 30);
    const measured = measureFolder(folder, NOW - 24 * HOUR_MS);
    expect(measured).toMatchObject({ bytes: 40 });
    if (typeof measured === "string") throw new Error(measured);
    expect(NOW - measured.newestMs).toBeCloseTo(30 * HOUR_MS, -4);
  });

  it.each(files)("is young when only %s is", async (file) => {
    const folder = await sessionFolder(48, files);
    touch(join(folder, file), 1);
    expect(measureFolder(folder, NOW - 24 * HOUR_MS)).toBe("young");
  });

  it("is young when a file was added deep inside", async () => {
    const folder = await sessionFolder(48, files);
    writeFileSync(join(folder, "files", "new.txt"), "x");
    expect(measureFolder(folder, NOW - 24 * HOUR_MS)).toBe("young");
  });

  it("is that of the folder when there is no file in it", async () => {
    const folder = await sessionFolder(48, []);
    expect(measureFolder(folder, NOW - 24 * HOUR_MS)).toMatchObject({ bytes: 0 });
    touch(folder, 1);
    expect(measureFolder(folder, NOW - 24 * HOUR_MS)).toBe("young");
  });

  it("does not follow links", async () => {
    const outside = await sessionFolder(1, ["young.txt"]);
    const folder = await sessionFolder(48, files);
    symlinkSync(outside, join(folder, "link"));
    makeOld(folder, 48 * HOUR_MS);
    expect(measureFolder(folder, NOW - 24 * HOUR_MS)).not.toBe("young");
  });

  it("of what is not there is none", async () => {
    expect(measureFolder(await temporaryRoot(), NOW)).toBe("gone");
  });
});

describe("what a record says", () => {
  it("has the TTL that was given, and its own before that", () => {
    expect(ttlOf(null, 5)).toBe(5);
    expect(ttlOf(sessionRecord("a"), 5)).toBe(5);
    expect(ttlOf(sessionRecord("a", { ttlMs: 7 }), 5)).toBe(7);
  });

  it("counts as used now when its date cannot be read", () => {
    expect(lastUseOf(sessionRecord("a", { lastUsedAt: "2026-01-01T00:00:00.000Z" }), NOW)).toBe(Date.UTC(2026, 0, 1));
    expect(lastUseOf(sessionRecord("a", { lastUsedAt: "yesterday" }), NOW)).toBe(NOW);
  });

  describe("an ephemeral session is abandoned", () => {
    const own = ownIdentity();
    const dead = { ...own, startTicks: "1" };
    const ephemeral = { persistence: "ephemeral" } as const;

    it.each([
      ["when the process that used it is dead", dead, true],
      ["not while that runs", own, false],
      ["not while it waits for its first use", null, false],
      ["when the machine was started anew since", { ...own, bootId: "another" }, true],
      ["not when another host's process uses it", { ...dead, host: "elsewhere", bootId: "another" }, false],
      ["not when a process of another PID namespace uses it", { ...dead, pidNamespace: "pid:[1]" }, false],
    ])("%s", (_, usedBy, abandoned) => {
      expect(isAbandoned(sessionRecord("a", { ...ephemeral, usedBy }), ONE_HOST)).toBe(abandoned);
    });

    it("and a persistent one never is", () => {
      expect(identify(process.pid)).not.toBeNull();
      expect(isAbandoned(sessionRecord("a", { usedBy: dead }), ONE_HOST)).toBe(false);
      expect(isAbandoned(null, ONE_HOST)).toBe(false);
    });
  });

  describe("the process of another host of the fleet goes by its host", () => {
    const hosts = {
      own: "h1",
      there: new Map([
        ["h1", true],
        ["h2", true],
        ["h3", false],
      ]),
    };
    const own = ownIdentity();
    const dead = { ...own, startTicks: "1" };

    it.each([
      ["one that is there", { ...dead, at: "h2" }, { used: true, abandoned: false }],
      ["one that is gone, also where the machine is the same", { ...own, at: "h3" }, { used: false, abandoned: true }],
      ["one that nobody has seen: its age decides", { ...dead, at: "h4" }, { used: false, abandoned: false }],
      ["this one: by the process", { ...dead, at: "h1" }, { used: false, abandoned: true }],
      ["this one: by the process that runs", { ...own, at: "h1" }, { used: true, abandoned: false }],
    ])("%s", (_, usedBy, { used, abandoned }) => {
      const record = sessionRecord("a", { persistence: "ephemeral", usedBy });
      expect({ used: isInUse(record, hosts), abandoned: isAbandoned(record, hosts) }).toEqual({ used, abandoned });
    });
  });
});
