import { spawnSync } from "node:child_process";
import { mkdir } from "node:fs/promises";
import { expect, it } from "vitest";
import { openFileStore } from "../../src/store/file/file-store.js";
import { bundleFixture } from "../fixtures/bundle.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

/** Runs a script in its own mount namespace. The script's mounts disappear when it ends. Needs no root. */
function inNamespace(script: string, ...argv: string[]) {
  return spawnSync("unshare", ["--map-root-user", "--mount", "sh", "-ec", script, "sh", ...argv], { encoding: "utf8" });
}

function mountProblem(): string | undefined {
  const { error, status, stderr } = inNamespace("mount -t tmpfs -o size=64k tmpfs /tmp");
  if (error) return "unshare is not installed";
  return status === 0 ? undefined : `nothing can be mounted here: ${stderr.trim()}`;
}

const problem = mountProblem();
if (problem !== undefined) console.log(`store disk faults: skipped, since ${problem}`);
const filler = bundleFixture("store-filler");
const reader = bundleFixture("store-reader");

it.skipIf(problem !== undefined)(
  "the file store refuses an update on a full disk, keeps the old state, and works again once there is room",
  async () => {
    const folder = await temporaryRoot();
    await mkdir(folder);
    const script = 'mount -t tmpfs -o size=64k,mode=0700 tmpfs "$1"; exec "$2" "$3" "$1"';
    const { stdout, stderr, status } = inNamespace(script, folder, process.execPath, filler);
    expect({ stderr, status }).toEqual({ stderr: "", status: 0 });
    const seen = JSON.parse(stdout);
    const refusal = {
      code: "FLEET_STATE_UNWRITABLE",
      message: expect.stringContaining("no space left on device (ENOSPC)"),
    };
    expect(seen.acked.length).toBeGreaterThan(7);
    expect(seen.acked.length).toBeLessThan(200);
    expect(seen.refusal).toEqual(refusal);
    expect(seen.full).toEqual({ servers: seen.acked, scratch: [], session: refusal, sessions: 0 });
    expect(seen.short).toEqual(refusal);
    expect(seen.again).toBe("acked");
    expect(seen.servers).toEqual([...seen.acked, "again"]);
  },
);

it.skipIf(problem !== undefined)(
  "the file store reads from a read-only folder, and refuses every write with the reason",
  async () => {
    const root = await temporaryRoot();
    const store = openFileStore(root);
    await store.registry.update((draft) => void Object.assign(draft.servers, { s1: serverRecord("s1") }));
    await store.sessions.create(sessionRecord("a"));
    const script = 'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; exec "$2" "$3" "$1"';
    const { stdout, stderr, status } = inNamespace(script, root, process.execPath, reader);
    expect({ stderr, status }).toEqual({ stderr: "", status: 0 });
    const refusal = {
      code: "FLEET_STATE_UNWRITABLE",
      message: expect.stringContaining("read-only file system (EROFS)"),
    };
    expect(JSON.parse(stdout)).toEqual({
      servers: ["s1"],
      sessions: ["a"],
      session: "a",
      idle: "acked",
      update: refusal,
      create: refusal,
      touch: refusal,
      delete: refusal,
      after: ["s1"],
      warnings: [],
    });
  },
);
