/**
 * POST /team-chat {message}: one conversation of a team. Each turn runs under the session's lease. So every member gets
 * the answer to their own message, even if several members write at once or several copies of this service run.
 * Run: TEAM=alice,bob npx tsx examples/team-chat.ts
 */
import { type Fleet, isFleetError } from "copilotfleet";
import { newApp, serve, textOf, userOf } from "./server.js";

const SESSION = "team-project-review";

export function teamChatApp(fleet: Fleet, [owner = "", ...members]: readonly string[]) {
  return newApp((app) => {
    app.post("/team-chat", async (request, response) => {
      const user = userOf(request);
      const message = textOf(request, "message");
      await ensureSession(fleet, owner, members);
      const { text } = await fleet.sessions.use(SESSION, message, { user, wait: "60s" });
      response.json({ content: text });
    });
  });
}

async function ensureSession(fleet: Fleet, owner: string, members: readonly string[]): Promise<void> {
  try {
    const session = await fleet.sessions.create({ user: owner, sessionId: SESSION, members });
    await fleet.sessions.leave(session);
  } catch (error) {
    if (!isFleetError(error, "FLEET_SESSION_EXISTS")) throw error;
  }
}

if (process.argv[1] === import.meta.filename) {
  await serve((fleet) => teamChatApp(fleet, (process.env.TEAM ?? "").split(",")));
}
