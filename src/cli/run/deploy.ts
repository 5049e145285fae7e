import { type LoadOptions, loadConfig } from "../../config/load/load.js";
import type { RenderedCompose } from "../../deploy/compose.js";
import type { DeployOptions } from "../../deploy/deployment.js";
import type { KubernetesOptions } from "../../deploy/kubernetes/options.js";
import type { RenderedKubernetes } from "../../deploy/kubernetes/render.js";
import type { RenderedSystemd, SystemdOptions } from "../../deploy/systemd.js";

/** The configuration file that `--config` names. */
type ConfigSource = Pick<LoadOptions, "configFile">;

// Import the renderers and their libraries only when one of these functions is called, so that no other command pays
// for loading them.

export async function deployKubernetes(options: KubernetesOptions, source: ConfigSource): Promise<RenderedKubernetes> {
  const { renderKubernetes } = await import("../../deploy/kubernetes/render.js");
  return renderKubernetes(loadConfig(source), options);
}

export async function deployCompose(options: DeployOptions, source: ConfigSource): Promise<RenderedCompose> {
  const { renderCompose } = await import("../../deploy/compose.js");
  return renderCompose(loadConfig(source), options);
}

/** @param output the folder to write the files below; undefined only renders them */
export async function deploySystemd(
  options: SystemdOptions,
  output: string | undefined,
  source: ConfigSource,
): Promise<RenderedSystemd & { written: string[] }> {
  const { renderSystemd } = await import("../../deploy/systemd.js");
  const rendered = renderSystemd(loadConfig(source), options);
  if (output === undefined) return { ...rendered, written: [] };
  const { writeFiles } = await import("../../deploy/write.js");
  return { ...rendered, written: await writeFiles(output, rendered.files) };
}
