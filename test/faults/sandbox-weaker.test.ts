import { execFileSync } from "node:child_process";
import {
  chmodSync,
  cpSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";
import type { FleetEvent } from "../../src/base/event.js";
import type { ServerView } from "../../src/servers/server.js";
import { errorOf } from "../fixtures/fleets/fault-fleet.js";
import { serve } from "../fixtures/fleets/serve.js";
import { userFleet } from "../fixtures/fleets/user-fleet.js";

/** Tests that neither an agent nor a broken installation gets a weaker sandbox than the one before. */

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const isRoot = process.getuid?.() === 0;

interface Doctor {
  checks: { name: string; level: string; detail: string; fix: string | null; items: string[]; fixed: boolean }[];
}

/** A fleet whose account owns the fleet's code, on a machine with neither bwrap nor setpriv. */
async function ownCode(env: NodeJS.ProcessEnv = {}) {
  const { fleet, uid, under: asUser } = await userFleet(env);
  const place = dirname(fleet.folder);
  const [code, programs] = [join(place, "code"), join(place, "programs")];
  for (const name of ["bin", "dist", "native", "package.json", "oclif.manifest.json"])
    cpSync(join(ROOT, name), join(code, name), { recursive: true });
  symlinkSync(join(ROOT, "node_modules"), join(code, "node_modules"));
  execFileSync("chown", ["-R", `${uid}:${uid}`, code]);
  mkdirSync(programs);
  const script = `node=$1; shift 2; PATH=${programs} exec "$node" ${join(code, "bin/run.js")} "$@"`;
  const under = [...asUser, "/bin/sh", "-c", script, "sh"];
  const launcher = join(code, "native", `linux-${process.arch}`, "copilotfleet-sandbox");
  const events = async (type: string) =>
    (await fleet.json<{ events: FleetEvent[] }>(["events", "--type", type], { under })).events;
  return { fleet, under, launcher, events };
}

it.skipIf(!isRoot).each([
  ["may not run", (launcher: string) => chmodSync(launcher, 0o644)],
  ["is empty", (launcher: string) => truncateSync(launcher, 0)],
  ["is damaged", (launcher: string) => truncateSync(launcher, 3_000)],
])("if the launcher %s, no server starts with less than before, and an event names the reason", async (_, damage) => {
  const { fleet, under, launcher, events } = await ownCode();
  const { server } = await fleet.json<{ server: ServerView }>(["spawn", "--user", "alice"], { under });
  expect(server.sandbox.mode).toBe("landlock");
  const whole = readFileSync(launcher);
  damage(launcher);
  process.kill(server.pid ?? 0, "SIGKILL");
  for (const user of ["alice", "bob"]) {
    const refused = await fleet.run(["spawn", "--user", user, "--json"], { under });
    expect(refused.code, refused.stdout).toBe(3);
    expect(errorOf(refused)).toMatchObject({
      code: "FLEET_SANDBOX_UNUSABLE",
      message: expect.stringContaining(`"${launcher}", which makes the sandbox, cannot run: `),
      suggestions: expect.arrayContaining([`chmod 755 ${launcher}`]),
    });
  }
  expect(fleet.servers()).toEqual([]);
  expect(await events("server.started")).toContainEqual(
    expect.objectContaining({ user: "alice", outcome: "refused", reason: "FLEET_SANDBOX_UNUSABLE" }),
  );
  writeFileSync(launcher, whole);
  chmodSync(launcher, 0o755);
  const again = await fleet.json<{ server: ServerView }>(["spawn", "--user", "alice"], { under });
  expect(again.server.sandbox.mode).toBe("landlock");
});

it.skipIf(!isRoot)(
  "a weaker sandbox than at the last start is refused until doctor --accept-weaker-sandbox, which records an event",
  async () => {
    const { fleet, under, launcher, events } = await ownCode();
    const spawn = ["spawn", "--user", "alice", "--json"];
    await fleet.ok(spawn, { under });
    await fleet.ok(["stop", "--user", "alice"], { under });
    const { stdout } = await fleet.run(["doctor", "--quick", "--json"], { under });
    const code = (JSON.parse(stdout) as Doctor).checks.find(({ name }) => name === "code");
    const folder = join(dirname(launcher), "../..");
    expect(code).toMatchObject({
      level: "warning",
      detail: expect.stringContaining(folder),
      fix: "Install the package as another user, such as root.",
    });
    expect(code?.items).toContain(launcher);
    renameSync(launcher, `${launcher}.away`);
    const refused = await fleet.run(spawn, { under });
    expect(refused.code).toBe(3);
    const message = expect.stringMatching(
      /^The last server started in the sandbox landlock\. Now no sandbox works \(files: open, .*\): the launcher of the sandbox is not in /,
    );
    const suggestions = expect.arrayContaining(["copilotfleet doctor --accept-weaker-sandbox"]);
    expect(errorOf(refused)).toMatchObject({ code: "FLEET_SANDBOX_UNUSABLE", message, suggestions });
    const check = async (args: string[]) => {
      const { stdout, code } = await fleet.run(["doctor", "--quick", "--json", ...args], { under });
      return { code, ...(JSON.parse(stdout) as Doctor).checks.find(({ name }) => name === "sandbox") };
    };
    expect(await check([])).toMatchObject({
      code: 3,
      level: "failed",
      detail: message,
      fix: "copilotfleet doctor --accept-weaker-sandbox",
    });
    expect(await check(["--fix"])).toMatchObject({ code: 3, level: "failed" });
    expect(await events("sandbox.weakened")).toEqual([]);
    expect(await check(["--accept-weaker-sandbox"])).toMatchObject({ level: "warning", fixed: true });
    expect(await events("sandbox.weakened")).toMatchObject([
      { outcome: "ok", reason: "accepted", detail: expect.stringMatching(/^to none; everything: open$/) },
    ]);
    const { server } = await fleet.json<{ server: ServerView }>(spawn.slice(0, -1), { under });
    expect(server.sandbox.mode).toBe("none");
    // A stronger sandbox is remembered without a command.
    await fleet.ok(["stop", "--user", "alice"], { under });
    renameSync(`${launcher}.away`, launcher);
    await fleet.ok(spawn, { under });
    await fleet.ok(["stop", "--user", "alice"], { under });
    renameSync(launcher, `${launcher}.away`);
    expect((await fleet.run(spawn, { under })).code).toBe(3);
  },
);

it.skipIf(!isRoot)(
  "the operator may name a weaker sandbox.mode, which is an event, but a damaged note of the last sandbox is an error",
  async () => {
    const { fleet, under, events } = await ownCode();
    const spawn = async (mode: string) =>
      await fleet.run(["spawn", "--user", "alice", "--json"], { under, env: { COPILOTFLEET_SANDBOX_MODE: mode } });
    expect((await spawn("auto")).code).toBe(0);
    await fleet.ok(["stop", "--user", "alice"], { under });
    expect(await spawn("none")).toMatchObject({ code: 0 });
    expect(await events("sandbox.weakened")).toMatchObject([
      { reason: "configuration", detail: expect.stringMatching(/^from landlock to none; files: open, /) },
    ]);
    await fleet.ok(["stop", "--user", "alice"], { under });
    const note = join(fleet.root, "sandbox.json");
    truncateSync(note, 0);
    const refused = await spawn("auto");
    expect(refused.code).toBe(3);
    expect(errorOf(refused)).toMatchObject({
      code: "FLEET_SANDBOX_UNUSABLE",
      message: `The note "${note}" about this host's sandbox is damaged.`,
    });
    // Without a sandbox, the note decides nothing, so the next start writes it again.
    expect(await spawn("none")).toMatchObject({ code: 0 });
    await fleet.ok(["stop", "--user", "alice"], { under });
    expect((await spawn("auto")).code).toBe(0);
  },
);

it.skipIf(!isRoot).each([
  [{ COPILOTFLEET_SESSION_APPROVE: "all" }, 'session.approve is "all"'],
  [{ COPILOTFLEET_SESSION_HOST: "owner" }, 'session.host is "owner"'],
])("where no sandbox works and %j, no server and no serve starts unless sandbox.mode is none", async (env, setting) => {
  const { fleet, under, launcher } = await ownCode({ COPILOTFLEET_SANDBOX_MODE: "auto", ...env });
  rmSync(launcher);
  const expected = {
    code: "FLEET_SANDBOX_UNUSABLE",
    message: expect.stringMatching(new RegExp(`^${setting}, but no sandbox works on this machine: `)),
    suggestions: expect.arrayContaining([expect.stringContaining('sandbox.mode to "none"')]),
  };
  const commands = [["spawn", "--user", "alice"], ["create", "--user", "alice", "--id", "s"], ["serve"]];
  for (const args of commands) {
    const refused = await fleet.run([...args, "--json"], { under });
    expect({ code: refused.code, error: errorOf(refused) }, args[0]).toMatchObject({ code: 3, error: expected });
  }
  expect(fleet.servers()).toEqual([]);
  const doctor = await fleet.run(["doctor", "--quick", "--json"], { under });
  const check = (JSON.parse(doctor.stdout) as Doctor).checks.find(({ name }) => name === "sandbox");
  expect({ code: doctor.code, check }).toMatchObject({ code: 3, check: { level: "failed" } });
  const open = { COPILOTFLEET_SANDBOX_MODE: "none" };
  const serving = await serve(fleet, { under, env: open });
  expect(await serving.logged("servers start without a sandbox")).toMatchObject({ level: "warn", sandbox: "none" });
  await fleet.ok(["spawn", "--user", "alice"], { under, env: open });
  expect(await fleet.ok(["ps"], { under })).toMatch(/ SANDBOX .*\n.* none /);
  await serving.end();
});
