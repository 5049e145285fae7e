import { expect, it } from "vitest";
import { testFleet } from "../fixtures/commands/cli.js";
import { unused } from "../fixtures/sessions/unused.js";
import { Stopwatch } from "../fixtures/stopwatch.js";

/** A server that got SIGSTOP still accepts connections, but answers nothing. No command may wait for it forever. */

const fleet = testFleet();

it("commands end in time when the server does not answer, and restart --force replaces the server", async () => {
  const [user, id] = [unused("alice"), unused("s")];
  await fleet.create(user, id);
  const pid = await fleet.pidOf(user);
  const turn = await fleet.turn(user, id, "!delay 60000 x", ["--timeout", "5s"]);
  process.kill(pid, "SIGSTOP");
  using took = new Stopwatch();
  // send ends after the turn's deadline and two seconds each to abort the turn, leave the session and disconnect.
  const timedOut = turn.done.then((ran) => ({ ...ran, ms: took.ms }));
  const deleting = fleet.refusal(7, ["delete", id]).then((error) => ({ ...error, ms: took.ms }));
  const creating = fleet.refusal(7, ["create", "--user", user]).then((error) => ({ ...error, ms: took.ms }));
  expect(await fleet.server(user)).toMatchObject({ pid, state: "ready" });
  expect((await deleting).code).toBe("FLEET_SERVER_UNREACHABLE");
  expect((await deleting).ms).toBeLessThan(20_000);
  expect(await timedOut).toMatchObject({ code: 6, stderr: expect.stringContaining("did not finish its turn") });
  expect((await timedOut).ms).toBeLessThan(25_000);
  expect(await creating).toMatchObject({
    code: "FLEET_SERVER_UNREACHABLE",
    suggestions: expect.arrayContaining([expect.stringContaining("restart")]),
  });
  expect((await creating).ms).toBeLessThan(30_000);
  // The server could not report which sessions were in a turn, so every session that it had loaded counts as cut.
  const restarted = await fleet.run(["restart", "--user", user, "--force", "--json"]);
  expect([0, 8]).toContain(restarted.code);
  expect(restarted.json()).toMatchObject({ stopped: [{ outcome: "killed" }], servers: [{ state: "ready" }] });
  expect(await fleet.send(user, id, "back")).toMatch(/^\[turn \d\] back$/);
});
