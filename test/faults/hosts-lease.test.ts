import { expect, it } from "vitest";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { askUntilAnswered, turn } from "../fixtures/hosts/pod-user.js";
import { Pods, podsProblem } from "../fixtures/hosts/pods.js";

const problem = podsProblem();
if (problem !== undefined) console.warn(`hosts in namespaces are not tested: ${problem}`);

it.skipIf(problem !== undefined)(
  "a prompt that was queued on a killed host does not delay later prompts to the same session on another host",
  async () => {
    const env = { COPILOTFLEET_HOST_TTL: "8s" };
    await using pods = await Pods.start({ count: 2, env });
    await Promise.all(pods.hosts.map(async (host) => await host.serve()));
    const [door, other] = await Promise.all(pods.hosts.map(async (host) => await host.reach()));
    if (door === undefined || other === undefined) throw new Error("no doors");
    const { token } = await pods.host(0).json<{ token: string }>(["token", "issue", "--user", "ann"]);
    const first = await RawClient.as(door, token);
    expect((await first.request("session.create", { sessionId: "queued" }, 30_000)).error).toBeUndefined();
    await turn(first, "queued", "begin");
    const second = await RawClient.as(door, token);
    await second.requestOk("session.resume", { sessionId: "queued" });
    first.send({ id: "slow", method: "session.send", params: { sessionId: "queued", prompt: "!delay 60000 slow" } });
    await first.answerTo("slow");
    second.send({ id: "waits", method: "session.send", params: { sessionId: "queued", prompt: "waits" } });
    await eventually("the lease of the second", async () => (await pods.network.redis.keys("*:lease:*")).length > 0);
    await pods.host(0).kill();
    const prompt = (attempt: number) => `after, try ${attempt}`;
    const doors = [other];
    // In an earlier version, the killed host's prompt blocked the session for lock.ttl, which is far more than 60 s.
    const answer = await askUntilAnswered({ doors, token, sessionId: "queued", prompt, withinMs: 60_000 });
    expect(answer.reply).toMatch(/^\[turn \d\] after/);
  },
);
