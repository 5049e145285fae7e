import { withState } from "../measure.js";
import { type PartProcess, startPart } from "./processes.js";

/**
 * Runs one part of a benchmark with a new fleet and model, so that no server of another part is running.
 *
 * @param hasKey whether the fleet has a key for the model. The sessions of the fleet then reach it through the model
 * gateway, which counts their usage.
 */
export async function withModel(
  limitMs: number,
  use: (env: NodeJS.ProcessEnv, folder: string, model: PartProcess) => Promise<void>,
  { hasKey = false } = {},
): Promise<void> {
  await withState(
    async (base, folder) => {
      using model = await startPart(["model"]);
      const env = {
        ...base,
        COPILOTFLEET_PROVIDER_TYPE: "openai",
        COPILOTFLEET_PROVIDER_BASE_URL: model.url,
        ...(hasKey && { BENCH_KEY: "sk-bench", COPILOTFLEET_PROVIDER_API_KEY: '{"env":"BENCH_KEY"}' }),
        // The sandbox would keep the servers from the model when a client names it itself.
        COPILOTFLEET_SANDBOX_MODE: "none",
        COPILOTFLEET_SESSION_MAX_ACTIVE: "5000",
        COPILOTFLEET_LIMITS_DEFAULT_CONNECTIONS: "null",
        COPILOTFLEET_LIMITS_TOTAL_CONNECTIONS: "null",
      };
      await use(env, folder, model);
    },
    { limitMs },
  );
}
