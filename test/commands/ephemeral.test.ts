import { readdir } from "node:fs/promises";
import type { Socket } from "node:net";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { Fleet } from "../../src/index.js";
import type { SessionView } from "../../src/sessions/view.js";
import { testFleet } from "../fixtures/commands/cli.js";

const fleet = testFleet();

interface Shown {
  session: SessionView;
  reply: string | null;
}

const sessionsOf = async (user: string) =>
  (await fleet.json<{ sessions: SessionView[] }>(["list", "--user", user])).sessions.map(({ id }) => id);

const foldersOf = async (user: string) => await readdir(join((await fleet.server(user)).home, "session-state"));

describe("an ephemeral session", () => {
  it("an ephemeral session that was created for a prompt is deleted after that prompt, on disk too", async () => {
    const shown = await fleet.json<Shown>(["create", "--user", "eli", "--ephemeral", "--prompt", "hi"]);
    expect(shown).toMatchObject({ reply: "[turn 1] hi", session: { persistence: "ephemeral", state: "gone" } });
    expect(await sessionsOf("eli")).toEqual([]);
    expect(await foldersOf("eli")).toEqual([]);
  });

  it("an ephemeral session that was created without a prompt stays until its first use, and is then deleted", async () => {
    const { session } = await fleet.json<Shown>(["create", "--user", "ema", "--ephemeral", "--id", "once"]);
    expect(session).toMatchObject({ id: "once", persistence: "ephemeral", state: "idle" });
    expect(await sessionsOf("ema")).toEqual(["once"]);
    // gc does not delete the session, even though the process that created it has ended.
    expect(await fleet.json(["gc", "--ttl", "24h"])).toMatchObject({ deleted: [] });
    const shown = await fleet.json<Shown>(["send", "once", "hi", "--user", "ema"]);
    expect(shown).toMatchObject({ reply: "[turn 1] hi", session: { state: "gone" } });
    expect(await foldersOf("ema")).toEqual([]);
    expect((await fleet.refusal(4, ["send", "once", "again", "--user", "ema"])).code).toBe("FLEET_SESSION_NOT_FOUND");
  });

  it("an ephemeral session is deleted when a program leaves it or closes its fleet", async () => {
    const library = await Fleet.open({ env: fleet.env, cwd: fleet.folder });
    const left = await library.sessions.create({ user: "eve", ephemeral: true });
    const open = await library.sessions.create({ user: "eve", ephemeral: true });
    for (const session of [left, open]) expect((await library.sessions.send(session, "hi")).text).toBe("[turn 1] hi");
    await library.sessions.leave(left);
    expect(await sessionsOf("eve")).toEqual([open.sessionId]);
    await library.close();
    expect(await foldersOf("eve")).toEqual([]);
    expect(await sessionsOf("eve")).toEqual([]);
  });

  it("closing a fleet closes its connections even if an ephemeral session cannot be deleted", async () => {
    const library = await Fleet.open({ env: fleet.env, cwd: fleet.folder });
    await library.sessions.create({ user: "eva", sessionId: "kept", ephemeral: true });
    const { socket } = (await library.clients.connect("eva")) as unknown as { socket: Socket };
    const { pid } = await library.servers.ofUser("eva");
    if (pid === null) throw new Error("no server runs");
    process.kill(pid, "SIGSTOP");
    try {
      await expect(library.close()).rejects.toMatchObject({ code: "FLEET_SERVER_UNREACHABLE" });
    } finally {
      process.kill(pid, "SIGCONT");
    }
    // An open socket would keep the process alive.
    expect(socket.destroyed).toBe(true);
    expect(await sessionsOf("eva"), "the next gc has it").toEqual(["kept"]);
  });

  it("an ephemeral session is deleted when its turn fails", async () => {
    const { code } = await fleet.run(["create", "--user", "eno", "--ephemeral", "--prompt", "!fail no"]);
    expect(code).toBe(7);
    expect(await foldersOf("eno")).toEqual([]);
  });
});
