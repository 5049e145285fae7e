/**
 * POST /api/analyze {prompt}: one answer, and no trace of it: the session is ephemeral. If this process dies in the
 * middle, `copilotfleet gc` removes what it left.
 * Run: npx tsx examples/analyze.ts
 */
import type { Fleet } from "copilotfleet";
import { newApp, serve, userOf } from "./server.js";

export function analyzeApp(fleet: Fleet) {
  return newApp((app) => {
    app.post("/api/analyze", async (request, response) => {
      const session = await fleet.createSession({ user: userOf(request), ephemeral: true });
      try {
        const { text } = await fleet.send(session, request.body.prompt);
        response.json({ result: text });
      } finally {
        await fleet.leaveSession(session);
      }
    });
  });
}

if (process.argv[1] === import.meta.filename) await serve(analyzeApp);
