import { expect, it } from "vitest";
import { PORTS, testFleet } from "../fixtures/cli.js";

/** A stopped server still accepts connections, and answers nothing: no command may wait for it without an end. */

const fleet = testFleet(PORTS.hung);

it("ends every command in time, and can be restarted by force", async () => {
  await fleet.create("alice", "s");
  const pid = await fleet.pidOf("alice");
  const turn = await fleet.turn("alice", "s", "!delay 60000 x", ["--timeout", "5s"]);
  process.kill(pid, "SIGSTOP");
  const begun = performance.now();
  const took = () => performance.now() - begun;
  // The turn's own deadline, then two seconds each for aborting it, for leaving and for the goodbye.
  const timedOut = turn.done.then((ran) => ({ ...ran, ms: took() }));
  const deleting = fleet.refusal(7, ["delete", "s"]).then((error) => ({ ...error, ms: took() }));
  const creating = fleet.refusal(7, ["create", "--user", "alice"]).then((error) => ({ ...error, ms: took() }));
  expect(await fleet.server("alice")).toMatchObject({ pid, state: "ready" });
  expect((await deleting).code).toBe("FLEET_SERVER_UNREACHABLE");
  expect((await deleting).ms).toBeLessThan(20_000);
  expect(await timedOut).toMatchObject({ code: 6, stderr: expect.stringContaining("did not finish its turn") });
  expect((await timedOut).ms).toBeLessThan(25_000);
  expect(await creating).toMatchObject({
    code: "FLEET_SERVER_UNREACHABLE",
    suggestions: expect.arrayContaining([expect.stringContaining("restart")]),
  });
  expect((await creating).ms).toBeLessThan(30_000);
  // It could not be asked what it had in a turn, so whatever it had loaded counts as cut.
  const restarted = await fleet.run(["restart", "--user", "alice", "--force", "--json"]);
  expect([0, 8]).toContain(restarted.code);
  expect(restarted.json()).toMatchObject({ stopped: [{ outcome: "killed" }], servers: [{ state: "ready" }] });
  expect(await fleet.send("alice", "s", "back")).toMatch(/^\[turn \d\] back$/);
});
