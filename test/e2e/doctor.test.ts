import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { isCommand } from "../../src/base/errors.js";
import type { Check } from "../../src/fleet/doctor/checks.js";
import type { DoctorResult } from "../../src/fleet/doctor/doctor.js";
import { OLDEST_RUNTIME, ownVersion } from "../../src/runtime/launch/versions.js";
import { openStore, type Store } from "../../src/store/store.js";
import { TIME, testFleet } from "../fixtures/commands/cli.js";
import { COMMAND, type Ran } from "../fixtures/commands/command.js";
import { Terminal } from "../fixtures/commands/terminal.js";
import { faultsOf } from "../fixtures/commands/typed-commands.js";
import { eventually } from "../fixtures/eventually.js";
import { fake } from "../fixtures/fleets/fault-fleet.js";
import { testPorts } from "../fixtures/fleets/ports.js";
import { serve } from "../fixtures/fleets/serve.js";
import { FakeGitHub } from "../fixtures/models/fake-github.js";
import { bwrapProblem } from "../fixtures/programs/bwrap.js";

const fleet = testFleet();

const NO_MODEL = { COPILOTFLEET_PROVIDER_TYPE: undefined };
const OWN_MODEL = { COPILOTFLEET_PROVIDER_TYPE: "openai", COPILOTFLEET_PROVIDER_BASE_URL: "http://127.0.0.1:1/v1" };
const RECORD_CHECKS = ["sessions", "purges", "servers", "sandboxes", "stray processes"];
const STATE_CHECKS = [...RECORD_CHECKS, "pool", "serve", "events", "tokens", "ports"];

/** Runs `doctor` and returns its exit code, and its checks by name. Each fix must be a command or a sentence. */
async function examined(args: readonly string[] = [], env: NodeJS.ProcessEnv = {}) {
  const ran = await fleet.run(["doctor", ...args, "--json"], { env });
  const { ok, checks } = ran.json<DoctorResult>();
  expect({ stderr: ran.stderr, ok }).toEqual({ stderr: "", ok: ran.code === 0 });
  for (const { name, fix } of checks.filter((check) => check.fix !== null)) {
    expect(fix, name).not.toContain("copilotfleet doctor");
    expect(isCommand(fix ?? "") ? faultsOf(fix ?? "") : fix, name).toEqual(
      isCommand(fix ?? "") ? [] : expect.stringMatching(/[.?]$/),
    );
  }
  return { code: ran.code, checks: new Map(checks.map((check) => [check.name, check])) };
}

/** Runs `doctor`, which must exit with 0, and returns its checks by name. Warnings do not change the exit code. */
async function findings(env: NodeJS.ProcessEnv = {}): Promise<Map<string, Check>> {
  const { code, checks } = await examined([], env);
  expect(code).toBe(0);
  return checks;
}

function store(): Store {
  return openStore("file", fleet.root);
}

async function listen(port = 0): Promise<Server> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen({ port, host: "127.0.0.1" }, resolve));
  return server;
}

describe("doctor", () => {
  it.each([
    [
      "that no model is configured",
      NO_MODEL,
      "model",
      /^none: neither provider nor auth is set/,
      /^copilotfleet init /,
    ],
    [
      "that the variable with the model's key is not set",
      { ...OWN_MODEL, COPILOTFLEET_PROVIDER_API_KEY: '{"env":"NO_SUCH_KEY"}' },
      "model",
      /^The environment variable NO_SUCH_KEY is not set\.$/,
      /^Set NO_SUCH_KEY to the key\.$/,
    ],
    [
      "that the variable with the GitHub token is not set",
      { ...NO_MODEL, COPILOTFLEET_AUTH_GITHUB_TOKEN: '{"env":"NO_SUCH_TOKEN"}' },
      "model",
      /^The environment variable NO_SUCH_TOKEN is not set\.$/,
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
          `that, without a sandbox, agents may get a shell beside others' state while session.approve is ${approve}`,
          { COPILOTFLEET_SESSION_APPROVE: approve, COPILOTFLEET_SANDBOX_MODE: "none" },
          "isolation",
          new RegExp(
            `all servers run as one operating-system user, and no sandbox .*\\. Here, session\\.approve is "${approve}"$`,
          ),
          /"session": \{"host": "none", "approve": "none"\}\.$/,
        ] as const,
    ),
    [
      "that, without a sandbox, clients reach others' state while session.host is owner",
      { COPILOTFLEET_SESSION_HOST: "owner", COPILOTFLEET_SANDBOX_MODE: "none" },
      "isolation",
      /all servers run as one operating-system user, and no sandbox .*\. Here, session\.host is "owner"$/,
      /"session": \{"host": "none", "approve": "none"\}\.$/,
    ],
    [
      "about a variable that sets nothing",
      { COPILOTFLEET_PORTS_FORM: "1" },
      "environment",
      /^unknown variables are ignored: COPILOTFLEET_PORTS_FORM \(did you mean COPILOTFLEET_PORTS_FROM\?\)/,
      /^unset COPILOTFLEET_PORTS_FORM$/,
    ],
  ] as const)("doctor warns %s, and still exits with 0", async (_, env, name, detail, fix) => {
    expect((await findings(env)).get(name)).toEqual({
      name,
      ok: true,
      level: "warning",
      detail: expect.stringMatching(detail),
      items: [],
      fix: expect.stringMatching(fix),
      fixed: false,
    });
  });

  it.skipIf(bwrapProblem !== undefined)(
    "doctor reports the sandbox and what an agent can do in it, and does not warn about shells",
    async () => {
      const checks = await findings({
        COPILOTFLEET_SANDBOX_MODE: "bwrap",
        COPILOTFLEET_SESSION_APPROVE: "all",
        COPILOTFLEET_SESSION_HOST: "owner",
      });
      expect(checks.get("isolation")).toMatchObject({
        level: "ok",
        detail: expect.stringContaining("a sandbox keeps"),
      });
      expect(checks.get("runtime")?.detail).toContain(`the oldest supported version is ${OLDEST_RUNTIME}`);
      expect(checks.get("sandbox")).toMatchObject({
        level: "ok",
        detail: "bwrap works",
        items: expect.arrayContaining([
          "an agent can connect to any address, and listen on every free port of the machine",
        ]),
      });
    },
  );

  it("doctor --quick starts no server and uses no network, shows the checks that it skips, and still exits with 0", async () => {
    const model = await listen();
    const connections: Socket[] = [];
    model.on("connection", (socket: Socket) => connections.push(socket));
    const { port } = model.address() as AddressInfo;
    const env = {
      ...OWN_MODEL,
      COPILOTFLEET_PROVIDER_BASE_URL: `http://127.0.0.1:${port}/v1`,
      COPILOT_CLI_PATH: "/bin/false",
    };
    const { ok, checks } = await fleet.json<DoctorResult>(["doctor", "--quick"], { env });
    expect(ok).toBe(true);
    const reason = "not checked, because --quick skips checks that start a server or use the network";
    for (const name of ["runtime"]) {
      expect(checks.find((check) => check.name === name)).toMatchObject({
        ok: false,
        level: "skipped",
        detail: reason,
      });
    }
    expect(checks.find(({ name }) => name === "model")).toMatchObject({
      level: "ok",
      detail: `provider of type openai at 127.0.0.1:${port}; not tried, because of --quick`,
    });
    expect(connections).toEqual([]);
    model.close();
    // Doctor still makes the other checks, so it finds an error in the configuration.
    expect((await fleet.run(["doctor", "--quick"], { env: { COPILOTFLEET_PORTS_FROM: "abc" } })).code).toBe(3);
  });

  it("doctor requests a GitHub App token and reports why GitHub refuses one, but sends no request with --quick", async () => {
    await using github = await FakeGitHub.start();
    const file = join(fleet.folder, "github-app.pem");
    writeFileSync(file, github.key, { mode: 0o600 });
    const env = {
      ...NO_MODEL,
      ...github.env,
      COPILOTFLEET_AUTH_GITHUB_APP_APP_ID: `${github.appId}`,
      COPILOTFLEET_AUTH_GITHUB_APP_INSTALLATION_ID: `${github.installationId}`,
      COPILOTFLEET_AUTH_GITHUB_APP_PRIVATE_KEY_FILE: file,
    };
    const model = async (more: NodeJS.ProcessEnv = {}, args: readonly string[] = []) =>
      (await examined(args, { ...env, ...more })).checks.get("model");
    const good = { level: "ok", detail: "GitHub App from auth.githubApp; GitHub gave a token", fix: null };
    expect(await model()).toMatchObject(good);
    expect(github.mints).toBe(1);
    const quick = "GitHub App from auth.githubApp; --quick does not ask GitHub";
    expect(await model({}, ["--quick"])).toMatchObject({ level: "ok", detail: quick });
    expect(github.mints).toBe(1);
    github.mintStatus = 403;
    expect(await model()).toMatchObject({
      level: "warning",
      detail: `GitHub refuses a token to installation 42 of App 4711 (403: "This installation has been suspended").`,
      fix: expect.stringMatching(/^Compare auth\.githubApp with the settings of the App/),
    });
    github.mintStatus = 503;
    expect(await model()).toMatchObject({ level: "warning", detail: expect.stringMatching(/answered with 503/) });
    github.mintStatus = undefined;
    expect(await model({ COPILOTFLEET_AUTH_GITHUB_APP_APP_ID: "4712" })).toMatchObject({
      level: "warning",
      detail: expect.stringMatching(/to installation 42 of App 4712 \(401/),
    });
    writeFileSync(file, "no key");
    const noKey = expect.stringMatching(/github-app\.pem" is not an RSA key/);
    expect(await model()).toMatchObject({ level: "warning", detail: noKey });
  });

  it("doctor ends with a line that names the checks which failed, warned or were skipped", async () => {
    const { stdout, code } = await fleet.run(["doctor", "--quick"], { env: { COPILOTFLEET_PORTS_FROM: "abc" } });
    expect(code).toBe(3);
    expect(stdout).toMatch(
      /\n\n\d+ checks: \d+ ok, 1 failed \(configuration\), .*\d+ skipped \(isolation, sandbox, limits, model, runtime, .*\)\n$/,
    );
  });

  it("doctor warns while serve is not running, and names the process of a running serve", async () => {
    expect((await findings()).get("serve")).toMatchObject({
      level: "warning",
      detail: expect.stringMatching(/^not running/),
      fix: "copilotfleet serve",
    });
    const serving = await serve(fleet);
    const seen = await findings();
    expect(seen.get("serve")).toMatchObject({
      level: "ok",
      detail: `running as process ${serving.pid}, version ${ownVersion()}`,
    });
    // Make the record of serve name another version.
    await store().registry.update(({ supervisors: [supervisor] = [] }) => {
      if (supervisor !== undefined) supervisor.version = "0.0.1";
    });
    expect((await findings()).get("serve")).toMatchObject({
      level: "warning",
      detail: `running as process ${serving.pid}, version 0.0.1; this command is version ${ownVersion()}`,
      fix: "Restart serve, so that it has the version of this command.",
    });
    expect((await serving.end()).code).toBe(0);
  });

  it("doctor warns if serve runs without the configured HTTP API", async () => {
    const wanted = { COPILOTFLEET_SERVE_HTTP: "127.0.0.1:4380" };
    const without = await serve(fleet);
    expect((await findings()).get("serve")).toMatchObject({ level: "ok" });
    expect((await findings(wanted)).get("serve")).toMatchObject({
      level: "warning",
      detail: `running as process ${without.pid}; serve.http is "127.0.0.1:4380", but serve has not opened it`,
      fix: "Restart serve, so that it opens the HTTP API.",
    });
    expect((await without.end()).code).toBe(0);
    const serving = await serve(fleet, { args: ["--http", "127.0.0.1:0"] });
    expect((await findings(wanted)).get("serve")).toMatchObject({ level: "ok" });
    expect((await serving.end()).code).toBe(0);
  });

  it("doctor warns while serve is not ready, with serve's reasons, and fails when serve does not answer", async () => {
    const serving = await serve(fleet);
    await fleet.ok(["drain"]);
    await eventually("serve notices the closed pool", async () => (await serving.readyz()).status === 503);
    expect((await findings()).get("serve")).toMatchObject({
      level: "warning",
      detail: `running as process ${serving.pid}; /readyz answers 503`,
      items: [expect.stringMatching(/^the pool was closed by "copilotfleet drain" at /)],
      fix: `curl http://${serving.address}/readyz`,
    });
    await fleet.ok(["drain", "--undo"]);
    serving.kill("SIGSTOP");
    const { code, checks } = await examined();
    expect(code).toBe(3);
    expect(checks.get("serve")).toMatchObject({
      level: "failed",
      detail: `running as process ${serving.pid}; it does not answer at http://${serving.address}/healthz within 2 s`,
      fix: `kill -KILL ${serving.pid}  # then start serve again, unless systemd or an orchestrator does`,
    });
    serving.kill("SIGKILL");
    await serving.done;
  });

  it("while the pool is closed, doctor, ps, top and route report when and by which command it was closed", async () => {
    await fleet.ok(["drain"]);
    expect((await findings()).get("pool")).toMatchObject({
      level: "warning",
      detail: expect.stringMatching(/^closed by "copilotfleet drain" at \d{4}-\d\d-\d\dT\S+: it takes no new/),
      fix: "copilotfleet drain --undo",
    });
    // ps, top and route warn, too. They warn on standard error, so that their standard output, which scripts read, does
    // not change.
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
      await top.shows(/The pool is closed by .*\[servers\]/s);
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
  it.skipIf(!canMount).each([
    ["little disk space is", "size=64m", /^only \d\d MB free at \S+\/small\d\/state; on a full disk/],
    ["few files are", "nr_inodes=500", /^only \S+ GB and \d{3} files free at \S+\/small\d\/state; on a full disk/],
  ])("doctor warns when %s left for the state folder", (_, size, detail) => {
    const folder = join(fleet.folder, `small${size.startsWith("size") ? 1 : 2}`);
    mkdirSync(folder, { recursive: true });
    const script = `mount -t tmpfs -o ${size},mode=0700 tmpfs "$1"; exec "$2" "$3" doctor --quick --json`;
    const argv = ["--map-root-user", "--mount", "sh", "-ec", script, "sh", folder, process.execPath, COMMAND];
    const env = { ...fleet.env, COPILOTFLEET_HOME: join(folder, "state") };
    const { stdout } = spawnSync("unshare", argv, { encoding: "utf8", env, cwd: fleet.folder });
    const { checks } = JSON.parse(stdout) as DoctorResult;
    expect(checks.find(({ name }) => name === "disk space")).toMatchObject({
      ok: true,
      level: "warning",
      detail: expect.stringMatching(detail),
      fix: "copilotfleet gc --dry-run",
    });
  });

  it("doctor prints warnings with fixes, and lists checks that it skips because another check failed", async () => {
    const warned = await fleet.ok(["doctor"]);
    expect(warned).toMatch(/^WARN {3}serve {12}not running: [^\n]+\n {24}Try: copilotfleet serve$/m);
    const env = { COPILOTFLEET_PORTS_FROM: "abc" };
    const { checks } = await shown(fleet.run(["doctor", "--json"], { env }));
    const local = ["isolation", "sandbox", "limits", "model", "runtime", "state folder", "permissions", "disk space"];
    const skipped = [...local, "store", "damage", "registry", ...STATE_CHECKS];
    expect(checks.filter(({ level }) => level === "skipped")).toEqual(
      skipped.map((name) => ({
        name,
        ok: false,
        level: "skipped",
        detail: 'not checked, because the check "configuration" failed',
        items: [],
        fix: null,
        fixed: false,
      })),
    );
    const text = (await fleet.run(["doctor"], { env })).stdout;
    for (const name of skipped) expect(text).toMatch(new RegExp(`^SKIP   ${name} +not checked`, "m"));
    const unsafe = await shown(fleet.run(["doctor", "--json"], { env: { COPILOTFLEET_HOME: "/etc/hostname/state" } }));
    const names = unsafe.checks.filter(({ level }) => level === "skipped").map(({ name }) => name);
    expect(names).toEqual(["store", "damage", "registry", ...STATE_CHECKS]);
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

async function shown(run: Promise<Ran>): Promise<DoctorResult> {
  return (await run).json<DoctorResult>();
}
