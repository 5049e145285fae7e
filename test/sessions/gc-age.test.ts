import { mkdirSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import { identify, ownIdentity } from "../../src/runtime/process/process-table.js";
import { isAbandoned, isInUse, lastUseOf, measureFolder, ttlOf } from "../../src/sessions/gc/survey.js";
import { makeOld } from "../fixtures/sessions/gc-sessions.js";
import { sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const ONE_HOST = { own: null, there: new Map<string, boolean>() };

const HOUR_MS = 3_600_000;
const NOW = Date.now();

/** Creates a session's folder whose files were all written `hours` ago. */
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

  it("a session's folder is as old as its newest file, and its size is that of all files", async () => {
    const folder = await sessionFolder(48, files);
    touch(join(folder, "events.jsonl"), 30);
    const measured = measureFolder(folder, NOW - 24 * HOUR_MS);
    expect(measured).toMatchObject({ bytes: 40 });
    if (typeof measured === "string") throw new Error(measured);
    expect(NOW - measured.newestMs).toBeCloseTo(30 * HOUR_MS, -4);
  });

  it.each(files)("a session's folder is young when only its file %s is young", async (file) => {
    const folder = await sessionFolder(48, files);
    touch(join(folder, file), 1);
    expect(measureFolder(folder, NOW - 24 * HOUR_MS)).toBe("young");
  });

  it("a session's folder is young when a file was added deep inside", async () => {
    const folder = await sessionFolder(48, files);
    writeFileSync(join(folder, "files", "new.txt"), "x");
    expect(measureFolder(folder, NOW - 24 * HOUR_MS)).toBe("young");
  });

  it("a session's folder without files is as old as the folder itself", async () => {
    const folder = await sessionFolder(48, []);
    expect(measureFolder(folder, NOW - 24 * HOUR_MS)).toMatchObject({ bytes: 0 });
    touch(folder, 1);
    expect(measureFolder(folder, NOW - 24 * HOUR_MS)).toBe("young");
  });

  it("the age of a session's folder does not depend on files behind links", async () => {
    const outside = await sessionFolder(1, ["young.txt"]);
    const folder = await sessionFolder(48, files);
    symlinkSync(outside, join(folder, "link"));
    makeOld(folder, 48 * HOUR_MS);
    expect(measureFolder(folder, NOW - 24 * HOUR_MS)).not.toBe("young");
  });

  it("a session's folder that does not exist is reported as gone", async () => {
    expect(measureFolder(await temporaryRoot(), NOW)).toBe("gone");
  });
});

describe("the facts in a session's record", () => {
  it("a session's own TTL takes precedence over the TTL that was given to gc", () => {
    expect(ttlOf(null, 5)).toBe(5);
    expect(ttlOf(sessionRecord("a"), 5)).toBe(5);
    expect(ttlOf(sessionRecord("a", { ttlMs: 7 }), 5)).toBe(7);
  });

  it("a session counts as used now when the date of its last use cannot be read", () => {
    expect(lastUseOf(sessionRecord("a", { lastUsedAt: "2026-01-01T00:00:00.000Z" }), NOW)).toBe(Date.UTC(2026, 0, 1));
    expect(lastUseOf(sessionRecord("a", { lastUsedAt: "yesterday" }), NOW)).toBe(NOW);
  });

  describe("abandoned ephemeral sessions", () => {
    const own = ownIdentity();
    const dead = { ...own, startTicks: "1" };
    const ephemeral = { persistence: "ephemeral" } as const;

    it.each([
      ["abandoned when the process that used it is dead", dead, true],
      ["not abandoned while the process that uses it runs", own, false],
      ["not abandoned while it waits for its first use", null, false],
      ["abandoned when the machine was restarted after its use", { ...own, bootId: "another" }, true],
      ["not abandoned while another host uses it", { ...dead, host: "elsewhere", bootId: "another" }, false],
      ["not abandoned when a process of another PID namespace uses it", { ...dead, pidNamespace: "pid:[1]" }, false],
    ])("an ephemeral session is %s", (_, usedBy, abandoned) => {
      expect(isAbandoned(sessionRecord("a", { ...ephemeral, usedBy }), ONE_HOST)).toBe(abandoned);
    });

    it("a persistent session is never abandoned", () => {
      expect(identify(process.pid)).not.toBeNull();
      expect(isAbandoned(sessionRecord("a", { usedBy: dead }), ONE_HOST)).toBe(false);
      expect(isAbandoned(null, ONE_HOST)).toBe(false);
    });
  });

  describe("sessions that are used by a process of some host", () => {
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
      ["a live host is in use", { ...dead, at: "h2" }, { used: true, abandoned: false }],
      [
        "a dead host is abandoned, even if the process still runs on this machine",
        { ...own, at: "h3" },
        { used: false, abandoned: true },
      ],
      ["an unknown host is neither in use nor abandoned", { ...dead, at: "h4" }, { used: false, abandoned: false }],
      ["this host is abandoned when the process is dead", { ...dead, at: "h1" }, { used: false, abandoned: true }],
      ["this host is in use while the process runs", { ...own, at: "h1" }, { used: true, abandoned: false }],
    ])("an ephemeral session that was last used by a process on %s", (_, usedBy, { used, abandoned }) => {
      const record = sessionRecord("a", { persistence: "ephemeral", usedBy });
      expect({ used: isInUse(record, hosts), abandoned: isAbandoned(record, hosts) }).toEqual({ used, abandoned });
    });
  });
});
