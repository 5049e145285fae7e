/**
 * POST /api/analyze {prompt}: one answer that leaves no trace, because the session is ephemeral. If this process dies
 * before the end, `copilotfleet gc` removes the session.
 * Run: npx tsx examples/analyze.ts
 */
import type { Fleet } from "copilotfleet";
import { newApp, serve, textOf, userOf } from "./server.js";

export function analyzeApp(fleet: Fleet) {
  return newApp((app) => {
    app.post("/api/analyze", async (request, response) => {
      response.json({ result: await analyze(fleet, userOf(request), textOf(request, "prompt")) });
    });
  });
}

async function analyze(fleet: Fleet, user: string, prompt: string): Promise<string> {
  const session = await fleet.sessions.create({ user, ephemeral: true });
  try {
    const { text } = await fleet.sessions.send(session, prompt);
    return text;
  } finally {
    await fleet.sessions.leave(session);
  }
}

if (process.argv[1] === import.meta.filename) await serve(analyzeApp);
