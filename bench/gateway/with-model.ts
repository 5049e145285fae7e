import { withState } from "../measure.js";
import { type PartProcess, startPart } from "./processes.js";

/** Runs one part of a benchmark with a new fleet and model, so that no server of another part is running. */
export async function withModel(
  limitMs: number,
  use: (env: NodeJS.ProcessEnv, folder: string, model: PartProcess) => Promise<void>,
): Promise<void> {
  await withState(
    async (base, folder) => {
      using model = await startPart(["model"]);
      const env = {
        ...base,
        COPILOTFLEET_PROVIDER_TYPE: "openai",
        COPILOTFLEET_PROVIDER_BASE_URL: model.url,
        COPILOTFLEET_SESSION_MAX_ACTIVE: "5000",
        COPILOTFLEET_LIMITS_DEFAULT_CONNECTIONS: "null",
        COPILOTFLEET_LIMITS_TOTAL_CONNECTIONS: "null",
      };
      await use(env, folder, model);
    },
    { limitMs },
  );
}
