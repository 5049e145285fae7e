import { execFile, spawnSync } from "node:child_process";
import { once } from "node:events";

import { expect, it } from "vitest";
import { testFleet } from "../fixtures/commands/cli.js";
import { COMMAND } from "../fixtures/commands/command.js";

const fleet = testFleet();
/** This test gets more time than others, because each query about a process starts ps or lsof. */
const TIMEOUT_MS = 150_000;

it("every feature works when the fleet asks ps and lsof instead of /proc", async (ctx) => {
  if (spawnSync("lsof", ["-v"]).error !== undefined) return ctx.skip("needs lsof");
  const env = { ...fleet.env, COPILOTFLEET_SYSTEM: "posix" };
  const child = execFile(process.execPath, [COMMAND, "smoke", "--json"], { env, timeout: TIMEOUT_MS });
  let stdout = "";
  child.stdout?.on("data", (text: string) => {
    stdout += text;
  });
  await once(child, "close");
  const { steps } = JSON.parse(stdout) as { steps: { name: string; ok: boolean }[] };
  expect(steps.filter(({ ok }) => !ok)).toEqual([]);
  expect(steps.map(({ name }) => name)).toEqual(expect.arrayContaining(["spawn", "crash", "supervise", "gc", "stop"]));
});
