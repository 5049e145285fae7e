import { chmodSync, copyFileSync, mkdirSync, readlinkSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, it } from "vitest";
import { findRuntime } from "../../src/runtime/launch/versions.js";
import { errorOf, expectConsistent, faultFleet, openFolder } from "../fixtures/fleets/fault-fleet.js";

const PLATFORM = `@github/copilot-${process.platform}-${process.arch}`;
const TRAP = "#!/usr/bin/env node\nthrow new Error('the wrapper was started');\n";

/**
 * Creates the files that npm installs: the wrapper's package, the command (a link to the wrapper), and, if `native`,
 * the native package.
 */
async function installed(native: boolean): Promise<{ wrapper: string; command: string; program: string }> {
  const modules = join(await openFolder(), "node_modules");
  const wrapper = join(modules, "@github", "copilot", "npm-loader.js");
  const program = join(modules, ...PLATFORM.split("/"), "copilot");
  const command = join(modules, ".bin", "copilot");
  for (const folder of [wrapper, command, ...(native ? [program] : [])].map(dirname))
    mkdirSync(folder, { recursive: true });
  writeFileSync(wrapper, TRAP, { mode: 0o755 });
  writeFileSync(join(dirname(wrapper), "package.json"), JSON.stringify({ name: "@github/copilot", version: "1.0.0" }));
  symlinkSync("../@github/copilot/npm-loader.js", command);
  if (native) {
    writeFileSync(join(dirname(program), "package.json"), JSON.stringify({ name: PLATFORM, version: "1.0.0" }));
    // Use a copy of the bundled runtime as the native program, because the test checks only which path is started. Link
    // runtime.node, because the runtime needs this file in its own folder.
    const bundled = findRuntime(null, {}).path;
    copyFileSync(bundled, program);
    symlinkSync(join(dirname(bundled), "runtime.node"), join(dirname(program), "runtime.node"));
  }
  return { wrapper, command, program };
}

it.each(["wrapper", "command"] as const)(
  "spawn starts the native program when COPILOT_CLI_PATH is the npm %s",
  async (which) => {
    const { program, ...paths } = await installed(true);
    const fleet = await faultFleet({ COPILOT_CLI_PATH: paths[which] });
    const { pid } = await fleet.spawn("alice");
    expect(readlinkSync(`/proc/${pid}/exe`)).toBe(program);
    expect(await fleet.record("alice")).toMatchObject({ runtimePath: program });
    await expectConsistent(fleet);
    expect(await fleet.json(["stop", "--user", "alice"])).toMatchObject({ stopped: [{ outcome: "drained" }] });
    expect(fleet.processes()).toEqual([]);
  },
);

it("spawn refuses an npm wrapper without its native program, and records nothing", async () => {
  const { wrapper } = await installed(false);
  const fleet = await faultFleet({ COPILOT_CLI_PATH: wrapper });
  const result = await fleet.run(["spawn", "--user", "alice", "--json"]);
  expect(result.code).toBe(3);
  expect(errorOf(result)).toMatchObject({
    code: "FLEET_RUNTIME_UNUSABLE",
    message: expect.stringContaining("npm wrapper"),
  });
  expect((await fleet.registry()).servers).toEqual({});
});

it("spawn refuses a native program that is not executable, and suggests the chmod command", async () => {
  const { wrapper, program } = await installed(true);
  chmodSync(program, 0o644);
  const fleet = await faultFleet({ COPILOT_CLI_PATH: wrapper });
  const result = await fleet.run(["spawn", "--user", "alice", "--json"]);
  expect(result.code).toBe(3);
  expect(errorOf(result)).toMatchObject({ code: "FLEET_RUNTIME_UNUSABLE", suggestions: [`chmod +x ${program}`] });
  expect((await fleet.registry()).servers).toEqual({});
});
