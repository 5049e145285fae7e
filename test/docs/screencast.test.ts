import { expect, it } from "vitest";
import { testFleet } from "../fixtures/commands/cli.js";
import { renderScreencast, type Step } from "./screencast.js";

const PID = "4711";
const fleet = testFleet();

/** Runs a command whose output is the same each time. */
async function step(words: string, args: readonly string[]): Promise<Step> {
  return { command: `copilotfleet ${words}`, output: lines(await fleet.ok(args)) };
}

function lines(text: string): string[] {
  return text.trimEnd().split("\n");
}

/** The table of `ps`, with fixed values in the columns that differ each time. */
async function ps(): Promise<Step> {
  const [heading = "", row = ""] = lines(await fleet.ok(["ps"]));
  const fixed: Record<string, string> = { URL: "127.0.0.1:40123", PID, UPTIME: "5s", MEMORY: "52.1 MB" };
  const names = heading.trim().split(/ {2,}/);
  const cells = row.trim().split(/ {2,}/);
  const shown = names.map((name, at) => [name, fixed[name] ?? cells[at] ?? ""]);
  const line = (part: 0 | 1) =>
    shown
      .map((pair) => (pair[part] ?? "").padEnd(Math.max(...pair.map((text) => text.length))))
      .join("   ")
      .trimEnd();
  return { command: "copilotfleet ps", output: [line(0), line(1)] };
}

// To update the picture, run `npx vitest run test/docs/screencast.test.ts -u` and look at it.
it("the screencast in the README shows what the commands print", async () => {
  const alice = ["--user", "alice"];
  const created = await step('create --user alice --id demo --prompt "hello"', [
    ...["create", ...alice, "--id", "demo", "--prompt", "hello"],
  ]);
  const sent = await step('send demo "and now" --user alice', ["send", "demo", "and now", ...alice]);
  const listed = await ps();
  process.kill(await fleet.pidOf("alice"), "SIGKILL");
  const killed: Step = { command: `kill -9 ${PID}   # alice's server`, output: [] };
  const again = await step('send demo "still there?" --user alice', ["send", "demo", "still there?", ...alice]);
  const picture = renderScreencast([created, sent, listed, killed, again]);
  expect(picture).toContain("[turn 3] still there?");
  await expect(picture).toMatchFileSnapshot("../../docs/screencast.svg");
});
