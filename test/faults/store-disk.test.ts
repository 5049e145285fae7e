import { execFileSync, spawnSync } from "node:child_process";
import { mkdir } from "node:fs/promises";
import { describe, expect, it, onTestFinished } from "vitest";
import { isUnreadable } from "../../src/store/failures.js";
import { mediumError } from "../../src/store/file/failures.js";
import { openStore } from "../../src/store/store.js";
import { bundleFixture } from "../fixtures/bundle.js";
import { TestFleet } from "../fixtures/commands/cli.js";
import { COMMAND } from "../fixtures/commands/command.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

/** Runs a script in its own mount namespace. The script's mounts disappear when it ends. Needs no root. */
function inNamespace(script: string, ...argv: string[]) {
  return inNamespaceWith(process.env, script, ...argv);
}

function inNamespaceWith(env: NodeJS.ProcessEnv, script: string, ...argv: string[]) {
  const args = ["--map-root-user", "--mount", "sh", "-ec", script, "sh", ...argv];
  return spawnSync("unshare", args, { encoding: "utf8", env });
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
    const script = 'mount -t tmpfs -o size=1m,mode=0700 tmpfs "$1"; exec "$2" "$3" "$1"';
    const { stdout, stderr, status } = inNamespace(script, folder, process.execPath, filler);
    expect({ stderr, status }).toEqual({ stderr: "", status: 0 });
    const seen = JSON.parse(stdout);
    const refusal = {
      code: "FLEET_STATE_UNWRITABLE",
      message: expect.stringContaining("no space left on device (ENOSPC)"),
    };
    expect(seen.acked.length).toBeGreaterThan(7);
    expect(seen.acked.length).toBeLessThan(2_000);
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
    const store = openStore("file", root);
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

/** Prints the exit code and the output of each command after its name. `fill` takes all space that is left. */
const ON_A_FULL_DISK = `
  mount -t tmpfs -o size=256m,mode=0700 tmpfs "$COPILOTFLEET_HOME"
  fleet() { "$node" "$command" "$@"; }
  try() { output=$(fleet "$@" 2>&1) && code=0 || code=$?; echo "$1 $code $output"; }
  fill() { dd if=/dev/zero of="$COPILOTFLEET_HOME/fill-$1" bs=4k 2>/dev/null || true; }
  for id in one two; do fleet create --user alice --id $id --prompt hi >/dev/null; done
  fleet stop --all >/dev/null
  fleet spawn --user bob >/dev/null
  fill 1; try doctor --quick
  try gc --ttl 1ms --user alice
  fill 2; try stop --all
  rm "$COPILOTFLEET_HOME"/fill-*
  fleet create --user alice --id four >/dev/null
  fill 3; try delete four --yes
  fill 4; try stop --all --force
`;

it.skipIf(problem !== undefined)(
  "gc, stop and delete work on a full disk, and doctor checks what it can read",
  async () => {
    const fleet = new TestFleet({ COPILOTFLEET_SANDBOX_MODE: "none" });
    onTestFinished(async () => await fleet.end());
    await mkdir(fleet.root, { mode: 0o700 });
    const env = { ...fleet.env, node: process.execPath, command: COMMAND };
    const { stdout, stderr, status } = inNamespaceWith(env, ON_A_FULL_DISK);
    expect({ stderr, status }, stdout).toEqual({ stderr: "", status: 0 });
    expect(stdout).toMatch(/^FAIL +store .*ENOSPC/m);
    expect(stdout).toMatch(/^ok +damage +none$/m);
    expect(stdout).toMatch(/^gc 0 .*deleted 2 sessions/m);
    expect(stdout).toMatch(/^stop 0 .*\n.*bob-\w+ +drained/m);
    expect(stdout).toMatch(/^delete 0 four$/m);
    expect(stdout).toMatch(/^stop 0 .*\n.*alice-\w+ +(drained|killed)/m);
  },
);

const TAKER = bundleFixture("files-taker");
/** More records than the store reads at once. */
const RECORDS = 220;
const hasLimit = spawnSync("prlimit", ["--nofile=64", "true"]).status === 0;

it.skipIf(!hasLimit)(
  "a list of sessions skips no record, even if the process runs out of files during the list",
  async () => {
    const root = await temporaryRoot();
    const store = openStore("file", root);
    for (let at = 0; at < RECORDS; at++) await store.sessions.create(sessionRecord(`session-${at}`));
    await store.close();
    const output = execFileSync("prlimit", ["--nofile=64", process.execPath, TAKER, root], { encoding: "utf8" });
    expect(JSON.parse(output)).toEqual({ records: RECORDS, unreadable: 0 });
  },
);

describe("isUnreadable", () => {
  const failed = (code: string) => mediumError("read", "/state/sessions/a", Object.assign(new Error(code), { code }));

  it.each(["EACCES", "EIO"])("a record whose read fails with %s counts as unreadable", (code) => {
    expect(isUnreadable(failed(code))).toBe(true);
  });

  it.each(["EMFILE", "ENFILE", "ENOMEM"])("a record whose read fails with %s does not count as unreadable", (code) => {
    expect(isUnreadable(failed(code))).toBe(false);
  });
});
