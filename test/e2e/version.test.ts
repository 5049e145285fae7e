import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it, onTestFinished } from "vitest";
import { testFleet } from "../fixtures/commands/cli.js";
import { eventually } from "../fixtures/eventually.js";
import { fake } from "../fixtures/fleets/fault-fleet.js";
import { isRunning, processesWith } from "../fixtures/processes.js";

const fleet = testFleet();
const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const versionIn = (folder: string) =>
  (JSON.parse(readFileSync(join(ROOT, folder, "package.json"), "utf8")) as { version: string }).version;
const VERSIONS = {
  copilotfleet: versionIn("."),
  node: process.versions.node,
  sdk: versionIn("node_modules/@github/copilot-sdk"),
  runtime: {
    version: expect.stringMatching(/^\d+\.\d+\.\d+/),
    path: expect.stringMatching(/^\/.*copilot/),
    protocol: expect.any(Number),
  },
  platform: `${process.platform}-${process.arch}`,
  serve: null,
};

it.each([[["-v"]], [["--version"]], [["ps", "-v"]], [["token", "issue", "--version"]], [["token", "-v"]]])(
  "%j prints the version on one line",
  async (args) => {
    expect(await fleet.ok(args)).toMatch(/^copilotfleet\/\d+\.\d+\.\d+ \S+ node-v\S+\n$/);
  },
);

it("version shows the versions of the command and of everything that it uses, and changes nothing", async () => {
  expect(await fleet.json(["version"])).toEqual(VERSIONS);
  expect(await fleet.json(["--version"])).toEqual(VERSIONS);
  const text = await fleet.ok(["version"]);
  for (const name of ["copilotfleet", "node", "sdk", "runtime", "serve", "platform"])
    expect(text).toMatch(new RegExp(`^${name} +\\S`, "m"));
  expect(text).toContain("serve         not running");
  expect(existsSync(fleet.root)).toBe(false);
});

it.each(["version", "doctor"])("on Ctrl-C, %s leaves neither a server nor a temporary folder", async (command) => {
  const temporary = join(fleet.folder, `temporary-of-${command}`);
  mkdirSync(temporary);
  const trialServers = () =>
    readdirSync(temporary).flatMap((trial) => processesWith(`COPILOTFLEET_OWNER=${join(temporary, trial, "state")}`));
  const { child, done } = fleet.start([command], {
    env: { TMPDIR: temporary, COPILOT_CLI_PATH: fake("silent.mjs") },
  });
  const [pid = 0] = await eventually("the trial server", () => {
    const pids = trialServers();
    return pids.length > 0 && pids;
  });
  onTestFinished(() => {
    if (isRunning(pid)) process.kill(pid, "SIGKILL");
  });
  child.kill("SIGINT");
  expect(await done).toMatchObject({ code: 130, stdout: "" });
  expect(isRunning(pid)).toBe(false);
  expect(readdirSync(temporary)).toEqual([]);
});

it("version shows the version of a serve that runs", async () => {
  const env = { COPILOTFLEET_SERVE_LISTEN: "127.0.0.1:0", COPILOTFLEET_SERVE_METRICS: "127.0.0.1:0" };
  const { child, done } = fleet.start(["serve"], { env });
  await eventually("serve", async () => (await fleet.json<typeof VERSIONS>(["version"])).serve !== null);
  expect(await fleet.json(["version"])).toMatchObject({ serve: VERSIONS.copilotfleet });
  child.kill("SIGTERM");
  await done;
});

it("version warns about a wrong configuration or runtime, and still shows the versions that it can find", async () => {
  const file = join(fleet.folder, "wrong.json");
  writeFileSync(file, '{"sesion": {}}');
  const wrong = await fleet.run(["version", "--json", "--config", file]);
  expect(wrong).toMatchObject({
    code: 0,
    stderr: expect.stringMatching(/^Warning: .*\[FLEET_CONFIG_INVALID\]\n$/),
  });
  expect(wrong.json()).toEqual(VERSIONS);
  const variable = await fleet.run(["version", "--json"], { env: { COPILOTFLEET_PORTS_FROM: "x" } });
  expect(variable.stderr).toMatch(/^Warning: COPILOTFLEET_PORTS_FROM .*\[FLEET_CONFIG_INVALID\]\n$/);
  const broken = await fleet.run(["version", "--json"], { env: { COPILOT_CLI_PATH: "/bin/false" } });
  expect(broken).toMatchObject({ code: 0, stderr: expect.stringMatching(/^Warning: .*\[FLEET_\w+\]\n$/) });
  expect(broken.json()).toEqual({
    ...VERSIONS,
    runtime: { version: null, path: expect.stringMatching(/\/false$/), protocol: null },
  });
});
