// Is the JSON of every dashboard a `Dashboard` of Grafana's own schema? Checked by the compiler; nothing is run.
// Enumerations are compared by their values, as JSON has no enumerations.
import type { AnnotationQuery, Dashboard } from '@grafana/schema';

type Json<T> = unknown extends T ? T
  : T extends string ? `${T}`
  : T extends number | boolean | null | undefined ? T
  : T extends (infer U)[] ? Json<U>[]
  : T extends object ? { [K in keyof T]: Json<T[K]> }
  : T;

// What Grafana's Prometheus source reads of an annotation, and the schema of the core does not name.
type PrometheusAnnotation = Json<AnnotationQuery> & { expr: string; titleFormat: string };

export type Checked = Json<Omit<Dashboard, 'annotations'>> & { annotations: { list: PrometheusAnnotation[] } };
