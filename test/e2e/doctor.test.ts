import { spawnSync } from "node:child_process";
import { mkdirSync, readdirSync, truncateSync } from "node:fs";
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { Check } from "../../src/fleet/doctor/checks.js";
import type { DoctorResult } from "../../src/fleet/doctor/doctor.js";
import { TIME, testFleet } from "../fixtures/commands/cli.js";
import { COMMAND, type Ran } from "../fixtures/commands/command.js";
import { Terminal } from "../fixtures/commands/terminal.js";
import { fake } from "../fixtures/fleets/fault-fleet.js";
import { testPorts } from "../fixtures/fleets/ports.js";

const fleet = testFleet();

const NO_MODEL = { COPILOTFLEET_PROVIDER_TYPE: undefined };
const OWN_MODEL = { COPILOTFLEET_PROVIDER_TYPE: "openai", COPILOTFLEET_PROVIDER_BASE_URL: "http://127.0.0.1:1/v1" };
const STATE_CHECKS = ["session records", "servers", "pool", "serve", "ports", "stray processes"];

/** Runs `doctor`, which must exit with 0, and returns its checks by name. Warnings do not change the exit code. */
async function findings(env: NodeJS.ProcessEnv = {}): Promise<Map<string, Check>> {
  const { ok, checks } = await fleet.json<DoctorResult>(["doctor"], { env });
  expect(ok).toBe(true);
  return new Map(checks.map((check) => [check.name, check]));
}

async function listen(port = 0): Promise<Server> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen({ port, host: "127.0.0.1" }, resolve));
  return server;
}

describe("doctor", () => {
  it.each([
    ["that no model is configured", NO_MODEL, "model", /^none: neither provider nor auth is set/, /provider or auth/],
    [
      "that the variable with the model's key is not set",
      { ...OWN_MODEL, COPILOTFLEET_PROVIDER_API_KEY_ENV: "NO_SUCH_KEY" },
      "model",
      /^NO_SUCH_KEY, which provider\.apiKeyEnv names .* is not set$/,
      /^Set NO_SUCH_KEY to the key\.$/,
    ],
    [
      "that the variable with the GitHub token is not set",
      { ...NO_MODEL, COPILOTFLEET_AUTH_GITHUB_TOKEN_ENV: "NO_SUCH_TOKEN" },
      "model",
      /^The environment variable NO_SUCH_TOKEN is not set$/,
      /^Set NO_SUCH_TOKEN/,
    ],
    [
      "that nothing listens at the model's address",
      OWN_MODEL,
      "model",
      /^provider of type openai at 127\.0\.0\.1:1 cannot be reached: connection refused$/,
      /provider\.baseUrl \("http:\/\/127\.0\.0\.1:1\/v1"\)/,
    ],
    ...(["ask", "all"] as const).map(
      (approve) =>
        [
          `that agents may get a shell beside others' state while session.approve is ${approve}`,
          { COPILOTFLEET_SESSION_APPROVE: approve },
          "isolation",
          new RegExp(`all servers run as one operating-system user\\. .*\\. Here, session\\.approve is "${approve}"$`),
          /"session": \{"host": "none", "approve": "none"\}\.$/,
        ] as const,
    ),
    [
      "that clients reach others' state while session.host is owner",
      { COPILOTFLEET_SESSION_HOST: "owner" },
      "isolation",
      /all servers run as one operating-system user\. .*\. Here, session\.host is "owner"$/,
      /"session": \{"host": "none", "approve": "none"\}\.$/,
    ],
    [
      "about a variable that sets nothing",
      { COPILOTFLEET_PORTS_FORM: "1" },
      "environment",
      /COPILOTFLEET_PORTS_FORM \(nearest known: COPILOTFLEET_PORTS_FROM\)/,
      /^unset COPILOTFLEET_PORTS_FORM$/,
    ],
  ] as const)("doctor warns %s, and still exits with 0", async (_, env, name, detail, fix) => {
    expect((await findings(env)).get(name)).toEqual({
      name,
      ok: true,
      level: "warning",
      detail: expect.stringMatching(detail),
      fix: expect.stringMatching(fix),
      fixed: false,
    });
  });

  it("doctor connects to the model's address without sending anything, even when there is a key", async () => {
    const model = await listen();
    const ends: Promise<number>[] = [];
    model.on("connection", (socket: Socket) => {
      let bytes = 0;
      socket.on("data", (chunk) => {
        bytes += chunk.length;
      });
      ends.push(new Promise((resolve) => socket.once("close", () => resolve(bytes))));
    });
    const { port } = model.address() as AddressInfo;
    const env = {
      ...OWN_MODEL,
      COPILOTFLEET_PROVIDER_BASE_URL: `http://127.0.0.1:${port}/v1`,
      COPILOTFLEET_PROVIDER_API_KEY_ENV: "MODEL_KEY",
      MODEL_KEY: "sk-secret",
    };
    expect((await findings(env)).get("model")).toMatchObject({
      level: "ok",
      detail: `provider of type openai at 127.0.0.1:${port} accepts connections`,
    });
    expect(await Promise.all(ends)).toEqual([0]);
    model.close();
  });

  it("doctor warns while serve is not running, and names its process while it is", async () => {
    expect((await findings()).get("serve")).toMatchObject({
      level: "warning",
      detail: expect.stringMatching(/^not running/),
      fix: "copilotfleet serve",
    });
    const env = { COPILOTFLEET_SERVE_LISTEN: "null", COPILOTFLEET_SERVE_METRICS: "127.0.0.1:0" };
    const serve = fleet.start(["serve"], { env });
    await expect
      .poll(async () => (await findings()).get("serve"), { timeout: 20_000, interval: 100 })
      .toMatchObject({ level: "ok", detail: `running as process ${serve.pid}` });
    serve.child.kill("SIGTERM");
    expect((await serve.done).code).toBe(0);
  });

  it("doctor, ps, top and route report that the pool is closed and since when, until it is opened again", async () => {
    await fleet.ok(["drain"]);
    expect((await findings()).get("pool")).toMatchObject({
      level: "warning",
      detail: expect.stringMatching(/^closed by "copilotfleet drain" at \d{4}-\d\d-\d\dT\S+: it takes no new/),
      fix: "copilotfleet drain --undo",
    });
    // The commands that show servers warn, too. They warn on standard error, so that their standard output, which
    // scripts read, stays the same.
    const pool = {
      state: "closed",
      reason: expect.stringMatching(/^closed by "copilotfleet drain" at /),
      drainedAt: TIME,
    };
    for (const args of [["ps"], ["top", "--once"], ["route", "--user", "alice"]]) {
      expect(await fleet.json(args)).toMatchObject({ pool });
      const { stdout, stderr, code } = await fleet.run(args);
      expect({ stderr, code }).toEqual({
        stderr: expect.stringMatching(/^The pool is closed by .* Open it again: copilotfleet drain --undo\n$/),
        code: 0,
      });
      expect(stdout).not.toContain("closed");
    }
    {
      await using top = new Terminal(fleet, ["top"], { columns: 160 });
      await top.shows(/The pool is closed by .*HOST +STATE/s);
      top.type("q");
      expect(await top.done).toBe(0);
    }
    await fleet.ok(["drain", "--undo"]);
    for (const args of [["ps"], ["top"], ["route", "--user", "alice"]]) {
      expect(await fleet.json(args)).toMatchObject({ pool: { state: "open", reason: null, drainedAt: null } });
      await fleet.ok(args);
    }
    expect((await findings()).get("pool")).toMatchObject({ level: "ok", detail: "open", fix: null });
  });

  it("doctor warns when other programs leave few ports of the range free", async () => {
    const { from, to } = testPorts(40);
    const strangers = await Promise.all(Array.from({ length: 37 }, (_, index) => listen(from + index)));
    const env = { COPILOTFLEET_PORTS_FROM: String(from), COPILOTFLEET_PORTS_TO: String(to) };
    expect((await findings(env)).get("ports")).toMatchObject({
      level: "warning",
      detail: expect.stringMatching(
        RegExp(`^only 3 of the 40 ports from ${from} to ${to} are free; .*37 by other programs$`),
      ),
      fix: expect.stringMatching(/ports\.from and ports\.to/),
    });
    for (const stranger of strangers) stranger.close();
    expect((await findings()).get("ports")).toMatchObject({ level: "ok" });
  });

  const canMount =
    spawnSync("unshare", ["--map-root-user", "--mount", "mount", "-t", "tmpfs", "t", "/tmp"]).status === 0;
  if (!canMount) console.log("doctor on a small disk: skipped, since unshare cannot mount here");
  it.skipIf(!canMount)("doctor warns when little disk space is left for the state folder", () => {
    const folder = join(fleet.folder, "small");
    mkdirSync(folder);
    const script = 'mount -t tmpfs -o size=64m,mode=0700 tmpfs "$1"; exec "$2" "$3" doctor --json';
    const argv = ["--map-root-user", "--mount", "sh", "-ec", script, "sh", folder, process.execPath, COMMAND];
    const env = { ...fleet.env, COPILOTFLEET_HOME: join(folder, "state") };
    const { stdout } = spawnSync("unshare", argv, { encoding: "utf8", env, cwd: fleet.folder });
    const { checks } = JSON.parse(stdout) as DoctorResult;
    expect(checks.find(({ name }) => name === "disk space")).toMatchObject({
      ok: true,
      level: "warning",
      detail: expect.stringMatching(/^only \d\d MB free at \S+\/small\/state; on a full disk/),
      fix: "copilotfleet gc --dry-run",
    });
  });

  it("doctor prints warnings with their fixes, and lists the checks that it skips because another one failed", async () => {
    const warned = await fleet.ok(["doctor"]);
    expect(warned).toMatch(/^WARN {3}serve {12}not running: [^\n]+\n {24}Try: copilotfleet serve$/m);
    const env = { COPILOTFLEET_PORTS_FROM: "abc" };
    const { checks } = await shown(fleet.run(["doctor", "--json"], { env }));
    const skipped = ["isolation", "runtime", "model", "state folder", "disk space", "registry", ...STATE_CHECKS];
    expect(checks.filter(({ level }) => level === "skipped")).toEqual(
      skipped.map((name) => ({
        name,
        ok: false,
        level: "skipped",
        detail: 'not checked, because the check "configuration" failed',
        fix: null,
        fixed: false,
      })),
    );
    const text = (await fleet.run(["doctor"], { env })).stdout;
    for (const name of skipped) expect(text).toMatch(new RegExp(`^SKIP   ${name} +not checked`, "m"));
    const unsafe = await shown(fleet.run(["doctor", "--json"], { env: { COPILOTFLEET_HOME: "/etc/hostname/state" } }));
    const names = unsafe.checks.filter(({ level }) => level === "skipped").map(({ name }) => name);
    expect(names).toEqual(["registry", ...STATE_CHECKS]);
  });

  it("doctor warns of damaged records, and doctor --fix writes them again", async () => {
    await fleet.spawn("alice");
    await fleet.create("alice", "damaged");
    await fleet.send("alice", "damaged", "hi");
    await fleet.ok(["stop", "--user", "alice"]);
    const folders = [join(fleet.root, "registry"), join(fleet.root, "sessions", "damaged")];
    for (const folder of folders) truncateSync(join(folder, newest(folder)), 0);

    const listed = await fleet.run(["ps"]);
    expect(listed.code).toBe(0);
    // `ps` counts sessions. Therefore it reads their records, too.
    expect(listed.stderr).toMatch(
      /^Warning: The newest revision of the record of session "damaged" [^\n]+\nWarning: The newest revision of the registry is damaged \(it is empty: "[^"]+"\)\. The fleet recovered revision \d+ from its copy "[^"]+registry\.json"; nothing is lost\. Check the disk, then run: copilotfleet doctor --fix\n$/,
    );

    const { ok, checks } = await shown(fleet.run(["doctor", "--json"]));
    expect(ok).toBe(true);
    for (const [name, damage] of [
      ["registry", /^\d+ servers recorded; The newest revision of the registry is damaged/],
      ["session records", /^\d+ sessions recorded; The newest revision of the record of session "damaged" is damaged/],
    ] as const) {
      const check = checks.find((one) => one.name === name);
      expect(check).toMatchObject({ level: "warning", detail: expect.stringMatching(damage), fixed: false });
      expect(check?.detail).not.toContain("copilotfleet doctor");
      expect(check?.fix).toMatch(/^Check the disk\. Add --fix to /);
    }

    const fixed = await shown(fleet.run(["doctor", "--fix", "--json"]));
    expect(fixed.checks.filter((one) => one.fixed).map(({ name }) => name)).toEqual(["registry", "session records"]);
    for (const folder of folders) {
      expect(readdirSync(folder).filter((name) => name.startsWith("corrupt-"))).toHaveLength(1);
    }
    const after = await findings();
    expect([after.get("registry")?.level, after.get("session records")?.level]).toEqual(["ok", "ok"]);
    expect(await fleet.ok(["list", "--user", "alice"])).toContain("damaged");
  });

  it("doctor does not suggest itself as the next step when the runtime is missing or exits at once", async () => {
    for (const [path, fix] of [
      [join(fleet.folder, "nowhere"), "unset COPILOT_CLI_PATH"],
      [fake("exits.mjs"), null],
    ] as const) {
      const ran = await shown(fleet.run(["doctor", "--json"], { env: { COPILOT_CLI_PATH: path } }));
      expect(ran.checks.find(({ name }) => name === "runtime")).toMatchObject({ level: "failed", fix });
    }
  });
});

function newest(folder: string): string {
  const names = readdirSync(folder).filter((name) => /^\d+\.json$/.test(name));
  return names.toSorted().at(-1) ?? "";
}

async function shown(run: Promise<Ran>): Promise<DoctorResult> {
  return (await run).json<DoctorResult>();
}
