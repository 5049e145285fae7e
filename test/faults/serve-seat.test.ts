import { readdir } from "node:fs/promises";
import { expect, it } from "vitest";
import type { Served } from "../../src/cli/run/serve.js";
import { ownVersion } from "../../src/runtime/launch/versions.js";
import { eventually } from "../fixtures/eventually.js";
import { errorOf, expectConsistent, faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { serve, startServe } from "../fixtures/fleets/serve.js";
import { directSession, heldModel, heldTurn, openLibrary } from "../fixtures/fleets/turns.js";
import { statusOf } from "../fixtures/processes.js";
import { Stopwatch } from "../fixtures/stopwatch.js";
import { straceProblem } from "../fixtures/store/store-strace.js";

it("a second serve is refused with the PID of the first, even while the first is suspended", async () => {
  const fleet = await faultFleet();
  const first = await serve(fleet);
  const second = await startServe(fleet, { args: ["--json"] }).done;
  expect(second.code).toBe(5);
  expect(errorOf(second)).toMatchObject({ code: "FLEET_SUPERVISOR_RUNNING" });
  expect(errorOf(second).message).toContain(`process ${first.pid}`);
  // Suspend the first serve. It still holds the host lock, so the third serve is refused, too.
  first.kill("SIGSTOP");
  await eventually("the stop", () => statusOf(first.pid).state === "T");
  const third = await startServe(fleet, { args: ["--json"] }).done;
  expect(third.code).toBe(5);
  expect(errorOf(third).message).toContain(`process ${first.pid}`);
  first.kill("SIGCONT");
  expect(await first.readyz()).toMatchObject({ status: 200 });
  expect((await first.end()).code).toBe(0);
  // The host lock is free after its holder ended, and after its holder was killed.
  const next = await serve(fleet);
  next.kill("SIGKILL");
  await next.done;
  const last = await serve(fleet);
  expect((await fleet.registry()).supervisors).toMatchObject([
    { process: { pid: last.pid }, state: "serving", metrics: last.address, version: ownVersion() },
  ]);
  await last.end();
  expect((await fleet.registry()).supervisors).toEqual([]);
});

it("exactly one of eight serve commands that start at once runs, and the others are refused", async () => {
  const fleet = await faultFleet();
  await fleet.spawn("alice");
  const all = Array.from({ length: 8 }, () => startServe(fleet, { args: ["--json"] }));
  const refused = await eventually(
    "seven refusals",
    async () => {
      const ended = await Promise.all(all.map(({ done }) => Promise.race([done, Promise.resolve(null)])));
      const those = ended.filter((one) => one !== null);
      return those.length === 7 && those;
    },
    60_000,
  );
  for (const one of refused) {
    expect(one.code).toBe(5);
    expect(errorOf(one).code).toBe("FLEET_SUPERVISOR_RUNNING");
  }
  const [{ process: holder } = { process: null }] = (await fleet.registry()).supervisors ?? [];
  const one = all.find(({ pid }) => pid === holder?.pid);
  await one?.logged("serving");
  await expectConsistent(fleet);
  expect((await one?.end())?.code).toBe(0);
});

it("serve --leave-running ends without touching servers or turns, and the next serve adopts them", async () => {
  const model = await heldModel();
  const fleet = await faultFleet(model.env);
  const library = await openLibrary(fleet);
  await fleet.json(["spawn", "--user", "u", "--count", "4"]);
  const before = (await fleet.ps()).map(({ user, pid, port }) => ({ user, pid, port }));
  const serving = await serve(fleet, { args: ["--leave-running", "--json"] });
  const open = await library.sessions.create({ user: "u-1", sessionId: "by-library" });
  const byLibrary = library.sessions.send(open, "!hold done");
  await eventually("the turn", () => model.held() === 1);
  const direct = await directSession(fleet, model, "direct", { user: "u-2" });
  const byClient = await heldTurn(direct, model);
  using took = new Stopwatch(serving.pid);
  const { code, stdout } = await serving.end();
  expect(took.ms).toBeLessThan(2_000);
  expect(code).toBe(0);
  expect(JSON.parse(stdout) as Served).toEqual({ leftRunning: true, stopped: [], failed: [] });
  expect((await fleet.registry()).supervisors).toEqual([]);
  // The commands and the servers work without a supervisor.
  const between = library.sessions.create({ user: "u-3" });
  const next = await serve(fleet);
  expect(await next.metric("servers", { state: "ready" })).toBe(4);
  expect(model.held()).toBe(2);
  model.release();
  expect(await byLibrary).toMatchObject({ text: "[turn 1] done" });
  expect(await byClient()).toBe("[turn 1] done");
  await between;
  expect(await fleet.ps()).toMatchObject(before);
  expect(next.log().filter(({ level }) => level !== "info")).toEqual([]);
  // The next serve also watches the servers that it adopted.
  const [{ pid } = { pid: null }] = before;
  process.kill(pid ?? 0, "SIGKILL");
  await eventually("the restart", async () => {
    const { state, process: now } = await fleet.record("u-1");
    return state === "ready" && now?.pid !== pid;
  });
  await next.end();
});

it("serve still works when it cannot write serving.json, and logs the failure", async (ctx) => {
  const problem = straceProblem();
  if (problem !== undefined) return ctx.skip(problem);
  const fleet = await faultFleet();
  // Only the write of serving.json calls chmod. With -D, serve is a child of this process and gets the test's signals.
  const under = ["strace", "-D", "-f", "-o", "/dev/null", "-e", "trace=chmod", "-e", "inject=chmod:error=ENOSPC"];
  const serving = await serve(fleet, { under });
  const trouble = /^the settings of this serve could not be recorded: .*serving\.json.*ENOSPC/;
  expect(serving.log().map(({ msg }) => msg)).toContainEqual(expect.stringMatching(trouble));
  expect((await readdir(fleet.root)).filter((name) => /^(\.|serving\.json)/.test(name))).toEqual([]);
  expect(await serving.readyz()).toMatchObject({ status: 200 });
  expect(await fleet.spawn("alice")).toMatchObject({ state: "ready" });
  expect((await serving.end()).code).toBe(0);
});
