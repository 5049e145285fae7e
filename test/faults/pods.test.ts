import { existsSync, readFileSync } from "node:fs";
import { hostname } from "node:os";
import { expect, it } from "vitest";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { Pods, podsProblem } from "../fixtures/hosts/pods.js";
import { isRunning } from "../fixtures/processes.js";

const problem = podsProblem();
if (problem !== undefined) console.warn(`hosts in namespaces are not tested: ${problem}`);

it.skipIf(problem !== undefined)(
  "test hosts in Linux namespaces are as separate as machines, and leave no process or mount behind",
  async () => {
    const pods = await Pods.start({ count: 2 });
    const inside: number[] = [];
    try {
      const [a, b] = [pods.host(0), pods.host(1)];
      const facts = async (pod: typeof a) =>
        (
          await pod.exec(["sh", "-c", "hostname; ip -4 -o addr show eth0 | cut -d' ' -f7; ls -d /proc/[0-9]* | wc -l"])
            .done
        ).stdout;
      expect(await facts(a)).toMatch(/^pod-0\n10\.77\.0\.2\/24\n\d\n$/);
      expect(await facts(b)).toMatch(/^pod-1\n10\.77\.0\.3\/24\n\d\n$/);
      expect(readFileSync("/proc/sys/kernel/hostname", "utf8").trim()).toBe(hostname());
      // The pod reaps orphaned processes.
      await a.exec(["sh", "-c", "(sleep 0.1 &) ; sleep 0.3"]).done;
      await eventually("the end of the orphan", async () => {
        const zombies = await a.exec(["sh", "-c", "grep -l 'State:.Z' /proc/[0-9]*/status"]).done;
        return zombies.stdout === "";
      });

      const serving = [await a.serve(), await b.serve()];
      const { token } = await a.json<{ token: string }>(["token", "issue", "--user", "alice"]);
      const client = await RawClient.as(await a.reach(), token);
      await client.requestOk("session.create", { sessionId: "talk", model: "gpt-5" });
      await client.turnOk("talk", "hello");
      expect(JSON.stringify(client.received)).toContain("[turn 1] hello");
      // Both hosts use one Redis, so each knows the tokens that the other issued.
      const { tokens } = await b.json<{ tokens: { user: string }[] }>(["token", "list"]);
      expect(tokens.map(({ user }) => user)).toEqual(["alice"]);
      expect((await serving[1]?.readyz())?.ok).toBe(true);

      await a.pause();
      const answer = client.request("ping");
      await expect(Promise.race([answer, new Promise((resolve) => setTimeout(resolve, 500, "none"))])).resolves.toBe(
        "none",
      );
      a.resume();
      expect((await answer).error).toBeUndefined();

      const cut = await RawClient.open(await b.reach());
      await b.cut();
      const unanswered = cut.request("ping");
      await expect(
        Promise.race([unanswered, new Promise((resolve) => setTimeout(resolve, 500, "none"))]),
      ).resolves.toBe("none");
      await b.mend();
      expect((await unanswered).error?.message).toBeDefined();

      inside.push(...a.processes(), ...b.processes());
      expect(inside.length).toBeGreaterThan(6);
      await a.kill();
      await client.end();
      expect(await serving[0]?.done).toMatchObject({ signal: "SIGKILL" });
      await a.boot();
      await a.serve();
      await RawClient.as(await a.reach(), token);
      inside.push(...a.processes());
    } finally {
      await pods[Symbol.asyncDispose]();
    }
    expect(inside.filter(isRunning)).toEqual([]);
    expect(existsSync(pods.folder)).toBe(false);
  },
);
