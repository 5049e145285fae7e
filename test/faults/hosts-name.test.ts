import { expect, it } from "vitest";
import { Pods, podsProblem } from "../fixtures/hosts/pods.js";

const problem = podsProblem();
if (problem !== undefined) console.warn(`hosts in namespaces are not tested: ${problem}`);

it.skipIf(problem !== undefined)(
  "on a machine with another host's name, every command is refused and changes nothing on that host",
  async () => {
    await using pods = await Pods.start({ count: 2 });
    const [one, two] = [pods.host(0), pods.host(1)];
    const serving = await one.serve();
    await one.json(["create", "--user", "ann", "--id", "notes", "--prompt", "one"]);
    const before = await one.json<{ servers: { pid: number }[] }>(["ps"]);
    // Give the second machine the first host's name, as if somebody had copied that host's configuration and image.
    const env = { COPILOTFLEET_HOST_NAME: one.name };
    await two.exec(["sh", "-c", `echo ${one.name} > /proc/sys/kernel/hostname`]).done;
    const commands = [
      ["serve"],
      ["send", "notes", "two", "--user", "ann"],
      ["spawn", "--user", "bob"],
      ["ps"],
      ["list"],
      ["drain"],
      ["gc", "--ttl", "1s"],
      ["stop", "--all"],
      ["logs", "ann"],
      ["route", "--user", "ann"],
      ["delete", "notes"],
    ];
    for (const args of commands) {
      const { code, stdout } = await two.run([...args, "--json"], { env });
      const { error } = JSON.parse(stdout) as { error?: { code: string } };
      expect({ args, code, error: error?.code }).toEqual({ args, code: 5, error: "FLEET_SUPERVISOR_RUNNING" });
    }
    const examined = await two.run(["doctor", "--fix", "--json"], { env });
    expect(examined.stdout).toContain(`is called \\"${one.name}\\"`);
    // Nothing has changed on the first host, and its serve still works.
    const after = await one.json<{ servers: { pid: number; activeSessions: number }[] }>(["ps"]);
    expect(after.servers.map(({ pid }) => pid)).toEqual(before.servers.map(({ pid }) => pid));
    expect(await one.json(["send", "notes", "two", "--user", "ann"])).toMatchObject({ reply: "[turn 2] two" });
    expect((await serving.readyz()).ok).toBe(true);
    // Under its own name, the second machine is a normal host.
    expect(await two.json(["send", "notes", "three", "--user", "ann"])).toMatchObject({ reply: "[turn 3] three" });
  },
);
