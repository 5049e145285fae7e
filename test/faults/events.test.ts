import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { mkdir } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it, onTestFinished } from "vitest";
import { readEvents } from "../../src/accounts/audit/query.js";
import { verifyLog } from "../../src/accounts/audit/verify.js";
import { bundleFixture } from "../fixtures/bundle.js";
import { seededRandom } from "../fixtures/random.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const SOAK = process.env.SOAK !== undefined;
const WRITERS = SOAK ? 8 : 3;
const ACCIDENTS = SOAK ? 600 : 12;
const PAUSE_MS = 120;

const writer = bundleFixture("events-writer");
const filler = bundleFixture("events-filler");

it(`the audit log keeps acknowledged events in one chain while ${WRITERS} writers are killed or stall`, async () => {
  const random = seededRandom("events torture");
  const root = await temporaryRoot();
  const acked: string[] = [];
  const errors: string[] = [];
  const running: (ChildProcess | undefined)[] = [];
  let started = 0;
  const start = (at: number) => {
    const child = spawn(process.execPath, [writer, root, `w${started++}`], { stdio: ["ignore", "pipe", "pipe"] });
    let rest = "";
    child.stdout?.setEncoding("utf8").on("data", (text: string) => {
      const lines = (rest + text).split("\n");
      rest = lines.pop() ?? "";
      acked.push(...lines);
    });
    child.stderr?.setEncoding("utf8").on("data", (text: string) => void errors.push(text));
    running[at] = child;
  };
  const closed = async (child: ChildProcess | undefined) =>
    await new Promise((resolve) => (child?.exitCode === null ? child.once("close", resolve) : resolve(undefined)));
  onTestFinished(() => running.forEach((child) => void child?.kill("SIGKILL")));
  for (let at = 0; at < WRITERS; at++) start(at);
  await expect.poll(() => acked.length).toBeGreaterThan(WRITERS);
  for (let accident = 0; accident < ACCIDENTS; accident++) {
    const before = acked.length;
    await sleep(random() * PAUSE_MS);
    const at = Math.floor(random() * WRITERS);
    const victim = running[at];
    if (random() < 0.6) {
      victim?.kill("SIGKILL");
      await closed(victim);
      start(at);
    } else {
      victim?.kill("SIGSTOP");
      setTimeout(() => void victim?.kill("SIGCONT"), random() * 300);
    }
    await expect.poll(() => acked.length).toBeGreaterThan(before);
  }
  for (const child of running) {
    child?.kill("SIGCONT");
    child?.kill("SIGKILL");
    await closed(child);
  }
  expect(errors).toEqual([]);
  const { events } = await readEvents(root, { types: ["token.issued"], limit: Number.MAX_SAFE_INTEGER });
  const details = events.map(({ detail }) => detail);
  expect(new Set(details).size).toBe(details.length);
  expect(acked.filter((detail) => !details.includes(detail))).toEqual([]);
  expect((await verifyLog(root)).brokenAt).toBeNull();
});

/** Runs a script in its own mount namespace. The script's mounts disappear when it ends. Needs no root. */
function inNamespace(script: string, ...argv: string[]) {
  return spawnSync("unshare", ["--map-root-user", "--mount", "sh", "-ec", script, "sh", ...argv], { encoding: "utf8" });
}

const canMount = inNamespace("mount -t tmpfs -o size=64k tmpfs /tmp").status === 0;

it.skipIf(!canMount)(
  "on a full disk, the audit log refuses new events, keeps acknowledged events, and works again once there is room",
  async () => {
    const folder = await temporaryRoot();
    await mkdir(folder);
    const script =
      'mount -t tmpfs -o size=256k,mode=0700 tmpfs "$1"; head -c 32768 /dev/zero > "$1/ballast"; exec "$2" "$3" "$1/state" "$1/ballast"';
    const { stdout, stderr, status } = inNamespace(script, folder, process.execPath, filler);
    expect({ stderr, status }).toEqual({ stderr: "", status: 0 });
    const seen = JSON.parse(stdout);
    expect(seen.acked.length).toBeGreaterThan(10);
    const code = "FLEET_EVENTS_UNWRITABLE";
    expect(seen.refusal).toEqual({ code, message: expect.stringContaining("no space left on device") });
    expect(seen.warnings).toBeGreaterThan(0);
    expect(seen.full.details).toEqual(seen.acked);
    expect(seen.full.verified).toEqual({ events: seen.acked.length, brokenAt: null });
    expect(seen.again).toBe("acked");
    // `record` was refused, so its event is never written. `note` may write its event later, when the disk has room.
    expect(seen.after.details).toEqual([...seen.acked, "noted", "again"]);
    expect(seen.after.verified.brokenAt).toBeNull();
  },
);

it.skipIf(!canMount)(
  "on a read-only file system, the audit log refuses events, but can still be read and verified",
  async () => {
    const root = await temporaryRoot();
    const make = spawnSync(process.execPath, [filler, root, "-", "5"], { encoding: "utf8" });
    const { acked } = JSON.parse(make.stdout);
    const script = 'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; exec "$2" "$3" "$1" -';
    const { stdout, stderr, status } = inNamespace(script, root, process.execPath, filler);
    expect({ stderr, status }).toEqual({ stderr: "", status: 0 });
    const seen = JSON.parse(stdout);
    const code = "FLEET_EVENTS_UNWRITABLE";
    expect(seen.refusal).toEqual({ code, message: expect.stringContaining("read-only file system") });
    expect(seen.acked).toEqual([]);
    expect(seen.after.details).toEqual([...acked, "noted", "again"]);
    expect(seen.after.verified).toEqual({ events: acked.length + 2, brokenAt: null });
  },
);
