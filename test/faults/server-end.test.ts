import { spawn } from "node:child_process";
import { once } from "node:events";
import { appendFileSync, readFileSync, rmSync } from "node:fs";
import { expect, it, onTestFinished } from "vitest";
import { logPath } from "../../src/runtime/files/server-folder.js";
import { exitOfZombie, identify, ownIdentity } from "../../src/runtime/process/process-table.js";
import { describeEnd } from "../../src/runtime/process/stop.js";
import { eventually } from "../fixtures/eventually.js";
import { faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { FAST_HEALTH, serve } from "../fixtures/fleets/serve.js";
import { openLibrary } from "../fixtures/fleets/turns.js";

/** The home of a server that has no folder. */
const NO_HOME = "/nonexistent/copilotfleet/home";
const KILLED = /^killed by SIGKILL at \d{4}-\d\d-\d\dT[\d:.]+Z/;

it("ps names the signal that killed a server while the process that started the server still runs", async () => {
  const fleet = await faultFleet();
  const library = await openLibrary(fleet);
  const { server } = await library.servers.spawn("alice");
  process.kill(server.pid ?? 0, "SIGKILL");
  await eventually("the end", () => identify(server.pid ?? 0) === null);
  expect(await fleet.ps()).toMatchObject([{ state: "failed", failure: expect.stringMatching(KILLED) }]);
});

it("ps names the exit code of a server that somebody else ended with SIGTERM", async () => {
  const fleet = await faultFleet();
  const library = await openLibrary(fleet);
  const { server } = await library.servers.spawn("alice");
  process.kill(server.pid ?? 0, "SIGTERM");
  await eventually("the end", () => identify(server.pid ?? 0) === null);
  expect(await fleet.ps()).toMatchObject([
    { state: "failed", failure: expect.stringMatching(/^exited with code 0 at /) },
  ]);
});

it("the log of serve and the reason of a crash loop name the signal that killed the server", async () => {
  const fleet = await faultFleet({ ...FAST_HEALTH, COPILOTFLEET_HEALTH_RESTARTS: "1" });
  const serving = await serve(fleet);
  const first = await fleet.spawn("alice");
  process.kill(first.pid ?? 0, "SIGKILL");
  const second = await eventually("a start by serve", async () => {
    const record = await fleet.record("alice");
    return record.state === "ready" && record.process?.pid !== first.pid ? record.process : null;
  });
  process.kill(second.pid, "SIGKILL");
  await eventually("the crash loop", async () =>
    (await fleet.record("alice")).failure?.includes("Last time: killed by SIGKILL at "),
  );
  expect(serving.log()).toContainEqual(
    expect.objectContaining({ state: "failed", failure: expect.stringMatching(KILLED) }),
  );
  await serving.end();
});

it("the reason of a failure quotes only what the last launch logged, even after the log was rotated", async () => {
  const fleet = await faultFleet();
  for (let launch = 1; launch <= 3; launch++) {
    const { id, pid, home } = await fleet.spawn("alice");
    const log = logPath(home);
    if (launch === 1) appendFileSync(log, "the first launch was here\n");
    process.kill(pid ?? 0, "SIGKILL");
    await eventually("the end", () => identify(pid ?? 0) === null);
    const [view] = await fleet.ps();
    expect(view?.id).toBe(id);
    expect(view?.failure).not.toContain("CLI server listening");
    expect(view?.failure).not.toContain("[copilotfleet]");
    expect(view?.failure?.includes("the first launch was here")).toBe(launch === 1);
    // `ps` prints how long ago the server ended, and the command that shows its log.
    expect(await fleet.ok(["ps"])).toMatch(
      /^alice-\w+: killed by SIGKILL \d+[sm] ago.* \(last log lines: copilotfleet logs alice\)$/m,
    );
  }
  const { pid, home } = await fleet.spawn("alice");
  rmSync(logPath(home)); // like a rotation: the log becomes shorter than it was at the launch
  appendFileSync(logPath(home), "after the rotation\n");
  process.kill(pid ?? 0, "SIGKILL");
  await eventually("the end", () => identify(pid ?? 0) === null);
  expect((await fleet.ps())[0]?.failure).toMatch(/; the end of its log: after the rotation$/);
});

it("a zombie process shows which signal ended it", async () => {
  // exec turns the shell into `sleep`, which never reaps the shell's child.
  const parent = spawn("sh", ["-c", "sleep 600 & echo $!; exec sleep 600"], { stdio: ["ignore", "pipe", "ignore"] });
  onTestFinished(() => void parent.kill("SIGKILL"));
  const [line] = (await once(parent.stdout, "data")) as [Buffer];
  const pid = Number(line.toString());
  const identity = identify(pid);
  if (identity === null) throw new Error("it ended at once");
  await eventually("the exec", () => readFileSync(`/proc/${parent.pid}/comm`, "utf8") === "sleep\n");
  expect(exitOfZombie(identity)).toBeNull();
  process.kill(pid, "SIGKILL");
  await eventually("the end", () => identify(pid) === null);
  expect(exitOfZombie(identity)).toEqual({ signal: "SIGKILL", code: null });
  expect(exitOfZombie({ ...identity, startTicks: "1" })).toBeNull();
  expect(describeEnd({ home: NO_HOME, launchId: "l1", process: identity })).toBe("killed by SIGKILL");
});

it("describeEnd reports an unknown end if the server's starter had exited before, unless the machine was restarted", () => {
  const gone = { ...ownIdentity(), pid: 2 ** 22, startTicks: "1" };
  expect(describeEnd({ home: NO_HOME, launchId: "l1", process: gone })).toBe(
    "its process ended in an unknown way, because the process that started it had already exited",
  );
  const before = { ...gone, bootId: "of an earlier start of the machine" };
  expect(describeEnd({ home: NO_HOME, launchId: "l1", process: before })).toBe("the machine was restarted");
});
