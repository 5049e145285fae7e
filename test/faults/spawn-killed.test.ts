import { expect, it } from "vitest";
import { expectConsistent, type FaultFleet, faultFleet, rounds } from "../fixtures/fleets/fault-fleet.js";
import { seededRandom } from "../fixtures/random.js";

/**
 * A command is killed at a random moment within this time, in milliseconds. Node alone needs about 60 ms to start. The
 * whole command usually ends before this time is over.
 */
const LATEST_MS = 300;

async function killAtRandom(fleet: FaultFleet, random: () => number, args: readonly string[]): Promise<void> {
  const { child, done } = fleet.start(args);
  const timer = setTimeout(() => child.kill("SIGKILL"), random() * LATEST_MS);
  const { code, stderr } = await done;
  clearTimeout(timer);
  // The command was killed, or had ended with exit code 0 before the kill.
  expect({ args, code, stderr }).toMatchObject({ code: code === null ? null : 0, stderr: "" });
}

it("ps clears away everything that a spawn leaves behind when it is killed at any moment", async () => {
  const fleet = await faultFleet();
  const random = seededRandom("kill spawn");
  for (let round = 0; round < rounds(3, 300); round++) {
    await killAtRandom(fleet, random, ["spawn", "--user", "alice"]);
    await expectConsistent(fleet);
    if (random() < 0.5) expect(await fleet.spawn("alice")).toMatchObject({ state: "ready" });
    await fleet.json(["stop", "--all", "--force"]);
  }
  await fleet.spawn("alice");
  await expectConsistent(fleet);
});

it("spawn succeeds right after another spawn was killed at any moment, without a ps in between", async () => {
  const fleet = await faultFleet();
  const random = seededRandom("kill spawn, spawn again");
  for (let round = 0; round < rounds(3, 300); round++) {
    await killAtRandom(fleet, random, ["spawn", "--user", "alice"]);
    const server = await fleet.spawn("alice");
    expect(fleet.servers()).toEqual([server.pid]);
    await fleet.json(["stop", "--user", "alice", "--force"]);
  }
  await expectConsistent(fleet);
});

it("a waiting spawn still gets its server when the spawn that was starting the server is killed", async () => {
  const fleet = await faultFleet();
  const random = seededRandom("kill spawn beside others");
  for (let round = 0; round < rounds(2, 100); round++) {
    const waiting = [1, 2, 3].map(() => fleet.spawn("alice", { ownProcess: true }));
    await Promise.all([1, 2].map(() => killAtRandom(fleet, random, ["spawn", "--user", "alice"])));
    const pids = new Set((await Promise.all(waiting)).map(({ pid }) => pid));
    expect(pids.size).toBe(1);
    expect(fleet.servers()).toEqual([...pids]);
    await fleet.json(["stop", "--user", "alice", "--force"]);
  }
  await expectConsistent(fleet);
});

it("ps clears away everything that create, stop, restart and spawn leave behind when they are killed at any moment", async () => {
  const fleet = await faultFleet();
  const random = seededRandom("kill the others");
  await fleet.spawn("alice");
  for (let round = 0; round < rounds(5, 400); round++) {
    const commands = [
      ["create", "--user", "alice", "--prompt", "hi"],
      ["stop", "--user", "alice"],
      ["restart", "--user", "alice"],
      ["stop", "--all", "--force"],
      ["ps"],
      ["spawn", "--user", "bob", "--count", "3"],
    ];
    const [command = []] = [commands[Math.floor(random() * commands.length)]];
    await killAtRandom(fleet, random, command);
    await expectConsistent(fleet);
    if (round % 4 === 0) expect(await fleet.spawn("alice")).toMatchObject({ state: "ready" });
  }
  // The recorded sessions can still be used.
  const { sessions } = await fleet.json<{ sessions: { id: string; state: string }[] }>(["list", "--user", "alice"]);
  expect(sessions.filter(({ state }) => state === "gone")).toEqual([]);
  for (const { id } of sessions.slice(0, 5)) await fleet.json(["send", id, "still there?", "--user", "alice"]);
  await expectConsistent(fleet);
});
